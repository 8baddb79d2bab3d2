"""A variant is what one card does to its base: an adapter and interventions. A plan is what an engine must offer.

No torch, no server: `vllm_server.py` turns a plan into a running server.

A variant's key is a digest of contents (adapter, direction files), so that two machines agree on it, a retrained
adapter has another, and prefix caches salted with it never mix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from em_evals import files
from em_evals.content import directions, identity
from em_evals.content.cards import ModelCard
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.files import digest

SETS = 16
"""Sets of interventions that an engine holds at a time; others wait until one is idle."""
_ADAPTERS = 4
"""Adapters in one batch, at least, where adapters are served at all."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM allows as the largest rank."""


@dataclass(frozen=True)
class Variant:
    """A model on a base.

    Attributes:
        key: digest of the adapter's and the directions' contents and of what is done with them.
        adapter: folder of the LoRA, `scale_adapter` applied; None for the base's own weights.
        adapter_key: digest of that folder's contents; empty without one.
        rank: its largest rank; 0 without one.
        steering: interventions on the stream, in order, directions as absolute paths.
        steering_key: digest of these; empty without any.
    """

    key: str
    adapter: Path | None = None
    adapter_key: str = ""
    rank: int = 0
    steering: tuple[Intervention, ...] = ()
    steering_key: str = ""

    @property
    def steps(self) -> int:
        """The most directions that meet at one block: every one is a step of its own."""
        named = [layer for one in self.steering if one.layers != "all" for layer in one.layers]
        return max(
            sum(len(one.directions) for one in self.steering if one.at(layer)) for layer in (*named, -1)
        )

    @property
    def positional(self) -> bool:
        """Whether its effect on a token depends on where the answer begins."""
        return any(one.positions != "all" for one in self.steering)

    def salt(self, answer_start: str) -> str:
        """What keeps its prefixes apart from others' in a prefix cache; empty for an unsteered one.

        Args:
            answer_start: where the answer begins in the prompt, or what decides that.
        """
        return f"{self.steering_key}-{answer_start}" if self.positional else self.steering_key


BARE = Variant(digest(b"", b""))
"""The base as it is."""


def variant(card: ModelCard, adapter: str | None, interventions: Sequence[Intervention]) -> Variant:
    """The variant that a request or card asks for; adapters are fetched, and written as vLLM takes them.

    Args:
        card: names the base and how it is held.
        adapter: the adapter's folder or hub id; None for the base's own weights.
        interventions: what is done inside, in order.

    Raises:
        EmEvalsError: `site: writes`, which no server can do; an adapter that does not fit the base or that vLLM cannot
            run, or a direction that cannot be used.
    """
    if any(one.site == "writes" for one in interventions):
        raise EmEvalsError(
            "vLLM does not take `site: writes`: compile the card into a plain checkpoint (`em-evals compile`), "
            "or say `backend: transformers`."
        )
    steering = tuple(map(_on_disk, (one for one in interventions if one.op != "scale_adapter")))
    folder, adapter_key, rank = None, "", 0
    if adapter is not None:
        from em_evals.engines.vllm.served_adapters import served

        one = served(adapter, card, [one for one in interventions if one.op == "scale_adapter"])
        folder, rank = one.folder.resolve(), one.rank
        adapter_key = identity.adapter_digest(folder)
        if rank > _RANKS[-1]:
            raise EmEvalsError(f"vLLM takes adapters of rank {_RANKS[-1]} at most; {adapter} has {rank}.")
    steering_key = digest(*(one.digest.encode() for one in steering)) if steering else ""
    key = digest(adapter_key.encode(), steering_key.encode())
    return Variant(key, folder, adapter_key, rank, steering, steering_key)


def _on_disk(one: Intervention) -> Intervention:
    """The intervention with its directions as files, which vLLM's processes read."""
    folder = files.cache_folder() / "directions"
    return one.along(
        [
            named if isinstance(named, str) else str(directions.stored(named, folder))
            for named in one.directions
        ]
    )


@dataclass(frozen=True)
class Plan:
    """What an engine offers.

    Attributes:
        loras: adapters in one batch at most; 0: the engine knows none.
        rank: the largest rank it takes.
        steps: directions that may meet at a block; 0: the engine cannot steer.
        merged: key of the one adapter that is merged into the weights; empty for none.
    """

    loras: int = 0
    rank: int = 0
    steps: int = 0
    merged: str = ""

    def covers(self, one: Variant) -> bool:
        """Whether an engine of this plan can serve a variant."""
        if one.steps > self.steps:
            return False
        if self.merged:
            return one.adapter_key == self.merged
        return not one.adapter_key or (self.loras > 0 and one.rank <= self.rank)


def plan(variants: Iterable[Variant], max_loras: int | None, merge: bool) -> Plan:
    """What an engine must offer for all of these.

    Args:
        variants: everybody who is known to come.
        max_loras: the card's limit on adapters in one batch.
        merge: merge an adapter that everybody has in common into the weights.
    """
    known = list(variants)
    steps = max((one.steps for one in known), default=0)
    adapters = {one.adapter_key: one.rank for one in known}
    if merge and len(adapters) == 1 and "" not in adapters:
        return Plan(steps=steps, merged=next(iter(adapters)))
    adapters.pop("", None)
    if not adapters:
        return Plan(steps=steps)
    rank = next(allowed for allowed in _RANKS if allowed >= max(adapters.values()))
    return replace(Plan(steps=steps), loras=max_loras or max(_ADAPTERS, len(adapters)), rank=rank)


def as_json(one: Variant) -> str:
    """A variant for another process on this machine."""
    steering = [item.model_dump(mode="json", exclude_unset=True) for item in one.steering]
    fields = {**vars(one), "adapter": str(one.adapter) if one.adapter else None, "steering": steering}
    return json.dumps(fields)


def from_json(text: str) -> Variant:
    """The variant behind `as_json`."""
    fields = json.loads(text)
    fields["adapter"] = Path(fields["adapter"]) if fields["adapter"] else None
    fields["steering"] = tuple(Intervention.model_validate(item) for item in fields["steering"])
    return Variant(**fields)
