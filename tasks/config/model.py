"""The base model."""

from pydantic import Field

from tasks.config.section import Name, Section


class ModelConfig(Section):
    """The base model. It is read in place and never changed."""

    base: Name = Field(
        "smollm2-135m-instruct",
        description="A model id on the Hub (owner/name, safetensors only), a local folder, or the bundled example "
        "model smollm2-135m-instruct.",
        min_length=1,
    )
    revision: Name = Field(
        "", description="Branch, tag or commit of a Hub model; resolved to a commit when a run begins."
    )
