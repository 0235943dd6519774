"""Ask a published adapter; its answer is printed as it is generated."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.commands.adapters import named
from flows.commands.arguments import a_path, count
from flows.commands.environment import homes_in_store
from tasks.errors import UserError


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("adapter", metavar="NAME[@VERSION]", help="without a version: the one in use")
    command.add_argument(
        "prompt",
        nargs="?",
        help="the text that the prompt's template is about, or a row as a JSON object; without one, each line typed",
    )
    command.add_argument("--file", type=a_path, help="a row a line in a .jsonl file; else one prompt")
    command.add_argument("--max-new-tokens", type=count, default=256, metavar="N", help="longest answer [default 256]")
    command.add_argument("--registry", type=a_path, metavar="FOLDER", help="default: the store's, and those it knows")


def main(options: argparse.Namespace) -> int:
    homes_in_store()
    folder, version = named(options)
    if options.prompt is not None and options.file:
        raise UserError("Give a prompt or --file, one of the two.")
    from flows.promote import base_of, named_version
    from tasks.config import FormattingConfig
    from tasks.formatting.prompts import prompt_of
    from tasks.process import quiet
    from tasks.promotion.champion import champion_of, read
    from tasks.promotion.clean_room import check_base, probes_of

    quiet.silence()  # the answer alone is printed
    if not (version := version or champion_of(read(folder))):
        raise UserError(f"No version of {folder.name} is in use; name one: {folder.name}@v0001.")
    published = named_version(folder, version)
    decided_by = published.manifest.identity.config
    formatting = {name[11:]: value for name, value in decided_by.items() if name.startswith("formatting.")}
    if not formatting:
        raise UserError(f"{version} of {folder.name} was published before versions noted how they are asked.")
    config, base = FormattingConfig(**formatting), base_of(published.manifest)
    check_base(published, base)
    prompt = prompt_of(config, Path(base.folder))
    prompts = _given(options, prompt)  # a mistake in them is said before the model is loaded
    print(f"{folder.name} {version} on {base.source}")
    from tasks.evaluation.answers.generate import Asked  # imports torch

    asked = Asked(Path(base.folder), published.path, probes_of(published).training, config)
    for each in _typed(prompt) if prompts is None else prompts:
        asked.answer(each, options.max_new_tokens)
    return 0


def _given(options: argparse.Namespace, prompt: Callable[[str], str]) -> list[str] | None:
    """The prompts of the command line or of a file; None if they are typed."""
    if not options.file:
        return None if options.prompt is None else [prompt(options.prompt)]
    try:
        whole = options.file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file: {options.file} cannot be read: {error}") from error
    if options.file.suffix != ".jsonl":
        return [prompt(whole)]
    prompts = []
    for number, line in enumerate(whole.split("\n"), 1):  # a string may have other line separators
        try:
            prompts += [prompt(line)] if line.strip() else []
        except UserError as error:
            raise UserError(f"--file: {options.file}, line {number}: {error}") from error
    return prompts


def _typed(prompt: Callable[[str], str]) -> Iterator[str]:
    print("A prompt a line; an empty line ends.")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while text := input("> ").strip():
            yield prompt(text)
