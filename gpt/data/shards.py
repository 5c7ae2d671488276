"""Preparation by several commands: what each has done, kept in a file, and the check before all is joined.

The i-th of n shards encodes the i-th of n blocks of the input files into OUTPUT.partial/shard-I-of-N. When all of its
parts are there it leaves shard.json beside them: of what text, with which settings, in which files.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from gpt.data.assemble import Recipe
from gpt.data.parts import EncodedPart
from gpt.data.place import Place
from gpt.errors import ConfigError, DataError
from gpt.reading import MAX_BYTES, parse_json

_RECORD = "shard.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """The number-th of count shards."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `--shard i/n` names."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"--shard {text}: expected i/n with i from 1 to n, for example 1/8")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def block(self, items: Sequence[str]) -> list[str]:
        """The items of the shard: contiguous, and as many as in others, or one more."""
        first, last = ((k * len(items)) // self.count for k in (self.number - 1, self.number))
        return list(items[first:last])

    def directory(self, partial: Place) -> Place:
        """Where its parts are."""
        return partial / f"shard-{self.number}-of-{self.count}"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a shard has done. `recipe` is of its block; the lists of all files, and the rest of it, all shards share."""

    inputs: list[str]
    validation: list[str]
    recipe: Recipe
    parts: list[EncodedPart]

    def write(self, directory: Place) -> None:
        """Marks the shard as finished."""
        (directory / _RECORD).write(json.dumps(dataclasses.asdict(self), indent=1).encode())

    @classmethod
    def read(cls, directory: Place) -> "Record | None":
        """What the shard of this directory has done; None when it is not finished.

        Raises DataError when the record, or a file that it names, is damaged or missing.
        """
        way_out = f"remove {directory} and run its shard again"
        try:
            tree = parse_json((directory / _RECORD).read(MAX_BYTES))
            recipe = Recipe(**tree.pop("recipe"))
            parts = [EncodedPart(**part) for part in tree.pop("parts")]
            record = cls(**tree, recipe=recipe, parts=parts)
            for part in parts:
                if not (type(part.size) is type(part.documents) is int and type(part.file) is type(part.split) is str):
                    raise TypeError(f"{part!r:.200} is no part")
        except FileNotFoundError:
            return None
        except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{directory / _RECORD}: is damaged ({error}); {way_out}") from None
        sizes = directory.sizes()
        for part in parts:
            if sizes.get(part.file) != part.size:
                problem = f"has {sizes[part.file]:,} bytes, not {part.size:,}" if part.file in sizes else "is missing"
                raise DataError(f"{directory / part.file}: {problem}; {way_out}")
        return record

    @property
    def shared(self) -> dict[str, Any]:
        """What must be the same in all shards, by the name that errors give it."""
        return {"--input": self.inputs, "--validation": self.validation, **self.recipe.settings}


def read_records(partial: Place, count: int) -> list[Record]:
    """What each of `count` shards has done; DataError unless all are finished and of the same files and settings."""
    shards = [Shard(number, count) for number in range(1, count + 1)]
    found = [Record.read(shard.directory(partial)) for shard in shards]
    missing = [str(shard) for shard, record in zip(shards, found, strict=True) if record is None]
    if missing:
        raise DataError(
            f"--join {count}: not finished: shard {', '.join(missing)}; run it with --shard {missing[0]}, which "
            f"continues where it stopped{_others(partial, count)}"
        )
    records = [record for record in found if record is not None]
    for shard, record in zip(shards, records, strict=True):
        changed = [name for name, value in records[0].shared.items() if record.shared[name] != value]
        if changed:
            raise DataError(
                f"--join {count}: shard {shard} differs from shard {shards[0]} in {', '.join(changed)}: remove "
                f"{shard.directory(partial)}, or the other, and run it again with the flags of the rest"
            )
    return records


def _others(partial: Place, count: int) -> str:
    counts = {name.rpartition("-")[2] for name in partial.sizes() if name.startswith("shard-")} - {str(count)}
    return f" (there are shards of {', '.join(sorted(counts))})" if counts else ""
