"""Judge cards: which model grades, pinned, and how it is asked. scorers/judges/NAME.yaml.

A card is to a judge what a model card is to an organism: one name for the provider, the model and its revision, the
sampling, and the digests of the prompts that it was tried with. Its digest stands in every score.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from em_evals import files
from em_evals.content import documents
from em_evals.content.addresses import Address
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError, nearest

_WITH_REVISION = ("local", "hf")
"""Providers that load a revision; of others it is a note."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    version: int = Field(default=1, ge=1)
    description: str = ""
    model: str = Field(pattern=r"^[^/\s]+/\S+$")
    revision: str | None = None
    base_url: Address | None = Field(default=None, pattern=r"^https?://\S+$")
    model_args: dict[str, Any] = {}
    read: Literal["auto", "logprobs", "sampling"] = "auto"
    samples: int = Field(default=5, ge=1, le=100)
    temperature: float = Field(default=1.0, ge=0, le=2)
    batch: bool | int = False
    rubrics: dict[str, str] = {}

    @field_validator("batch")
    @classmethod
    def _size(cls, batch: bool | int) -> bool | int:
        if batch is not True and batch is not False and batch < 1:
            raise ValueError("write true, false, or the smallest number of requests in a batch")
        return batch


@dataclass(frozen=True)
class JudgeCard:
    """A judge that a file pins.

    Attributes:
        model: Inspect's name of it, PROVIDER/MODEL; `local/CARD` is a model of ours.
        revision: of a model that is loaded (`local/`, `hf/`); for others a note that stands in the log.
        base_url: a second server's address.
        model_args: further arguments of Inspect's provider.
        read: `logprobs` reads token probabilities and fails where there are none, `sampling` parses replies, `auto`
            finds out (docs/judges.md).
        samples: replies per grade, where they are parsed.
        temperature: of these replies.
        batch: whether it is asked through its provider's batch API; a number is the smallest batch.
        rubrics: metric -> digest of the prompt that this judge was tried with; another prompt is refused.
    """

    name: str
    path: Path
    model: str
    revision: str | None
    base_url: str | None
    model_args: dict[str, Any]
    read: Literal["auto", "logprobs", "sampling"]
    samples: int
    temperature: float
    batch: bool | int
    rubrics: dict[str, str]

    @property
    def provider(self) -> str:
        """Inspect's provider."""
        return self.model.partition("/")[0]

    @property
    def arguments(self) -> dict[str, Any]:
        """What Inspect's `get_model` takes beside the model's name and address."""
        pinned = {"revision": self.revision} if self.revision and self.provider in _WITH_REVISION else {}
        return {**pinned, **self.model_args}

    @property
    def digest(self) -> str:
        """Identifies who grades and how; not the card's name or description, nor how its requests travel (`batch`)."""
        parts = (
            self.model,
            self.revision,
            self.base_url,
            self.model_args,
            self.read,
            self.samples,
            self.temperature,
        )
        return files.digest(json.dumps(parts, sort_keys=True, default=str))

    def record(self) -> dict[str, Any]:
        """Return what a log says of it; addresses may hold keys and are left out."""
        return {
            "name": self.name,
            "digest": self.digest,
            "model": self.model,
            "revision": self.revision,
            "read": self.read,
            "samples": self.samples,
            "temperature": self.temperature,
        }

    def check(self, graders: tuple[Rubric, ...]) -> None:
        """Refuse prompts other than those that the card pins.

        Raises:
            EmEvalsError: a rubric's digest differs.
        """
        for rubric in graders:
            pinned = self.rubrics.get(rubric.metric)
            if pinned is not None and pinned != rubric.digest:
                raise EmEvalsError(
                    f"the judge {self.name} was tried with another prompt for {rubric.metric} (digest {pinned}, "
                    f"this one is {rubric.digest}): compare both with `em-evals judges`, then change `rubrics`.",
                    self.path,
                )


def load(name: str) -> JudgeCard:
    """Load a judge card by name (scorers/judges/NAME.yaml) or path.

    Raises:
        EmEvalsError: it does not exist or is invalid, with file and line.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        known = documents.names("scorers/judges")
        if name not in known:
            raise EmEvalsError(
                f"there is no judge card '{name}'; {nearest(name, known)} Put it at scorers/judges/{name}.yaml, or "
                "name the judge with --model-role grader=PROVIDER/MODEL."
            )
        path = known[name]
    document = documents.load(path)
    file = documents.validate(_File, document)
    return JudgeCard(
        file.name or path.stem,
        document.path,
        file.model,
        file.revision,
        file.base_url,
        dict(file.model_args),
        file.read,
        file.samples,
        file.temperature,
        file.batch,
        dict(file.rubrics),
    )
