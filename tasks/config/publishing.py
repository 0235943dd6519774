"""Where versions go."""

from typing import Annotated

from pydantic import Field

from tasks.config.section import Name, Section


class PublishingConfig(Section):
    """Where a finished adapter goes."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        "adapter", description="Name of the adapter in the registry: lower-case letters, digits, . _ -"
    )
    registry: Name = Field("", description="Folder of numbered versions. Empty: `registry` inside the store.")
    hub_repo: str = Field(
        "",
        description="Hub repository (owner/name) to upload the version to. Empty: none.",
        pattern=r"^([A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)?$",
    )
    hub_private: bool = Field(True, description="Create that repository as private.")
