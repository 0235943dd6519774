"""Creates the automations of deployments/automations.yaml on the Prefect server, and the webhook that they send to."""

from pathlib import Path

import yaml
from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client

WEBHOOK = "qlora-flow"
"""Name of the block that notifications are sent with."""


def apply(file: Path, webhook: str) -> list[str]:
    """Create or update every automation, by its name. Returns a line for each.

    Args:
        webhook: URL that takes {"text": …} by POST, as Slack and Mattermost do. Empty: what sends notifications is left
            out.
    """
    block = ""
    if webhook:
        sender = CustomWebhookNotificationBlock(
            name=WEBHOOK,
            url="{{url}}",
            json_data={"text": "{{subject}}\n{{body}}"},
            secrets={"url": webhook},  # whoever knows it can write to the channel
        )
        block = str(sender.save(WEBHOOK, overwrite=True))
    lines = []
    for given in yaml.safe_load(file.read_text("utf-8"))["automations"]:
        for action in (sends := [each for each in given["actions"] if each["type"] == "send-notification"]):
            action["block_document_id"] = block
        if sends and not block:
            lines.append(f"automation {given['name']}: left out, QLORA_FLOW_WEBHOOK names no webhook")
            continue
        automation = Automation.model_validate(given)
        with get_client(sync_client=True) as client:
            there = client.read_automations_by_name(automation.name)
        if there:
            automation.id = there[0].id
            automation.update()
        else:
            automation.create()
        lines.append(f"automation {automation.name}")
    return lines
