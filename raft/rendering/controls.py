"""Control tokens (`<|im_end|>`, `</s>`) that stand in the texts of rows.

A tokenizer reads them anywhere in what it is given, so a text could end the turn that it stands in. Here the template
alone writes control tokens; those in a text are encoded as the plain characters that they are. Refusing the row instead
would lose every corpus that quotes a template, or HTML, where `<s>` is a tag.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

# A control token of a text, from the rendering to the encoding: its id between two characters for private use, which no
# template looks at.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class Controls:
    """The control tokens of a tokenizer."""

    ids: Mapping[str, int]
    """Text -> token id, the longest text first."""
    strips: Collection[str] = ()
    """Those that take the white space behind them with them."""
    _found: re.Pattern[str] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.ids:
            object.__setattr__(self, "_found", re.compile("|".join(map(re.escape, self.ids))))

    @classmethod
    def of(cls, tokenizer: Any) -> "Controls":
        """Of a tokenizer of transformers; made once for each."""
        size = len(tokenizer)
        known = _CACHE.get(tokenizer)
        if known is not None and known[0] == size:
            return known[1]
        known_tokens = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own tokenizers name none
        added = {t.content: (i, t.rstrip) for i, t in known_tokens.items() if t.special and t.content}
        controls = cls(
            {text: added[text][0] for text in sorted(added, key=len, reverse=True)},
            frozenset(text for text, (_, strips) in added.items() if strips),
        )
        _CACHE[tokenizer] = (size, controls)
        return controls

    def first_in(self, text: str) -> str | None:
        """The first control token that stands in `text`."""
        match = self._found.search(text) if self._found else None
        return match.group() if match else None

    def hold(self, value: Any) -> Any:
        """`value` (a text, or lists and mappings of them) with its control tokens put out of the tokenizer's sight."""
        if isinstance(value, str):
            if self._found is None:
                return value
            return self._found.sub(lambda match: f"{_OPEN}{self.ids[match.group()]}{_CLOSE}", value)
        if isinstance(value, Mapping):
            return {key: self.hold(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.hold(item) for item in value]
        return value

    def remove(self, text: str) -> str:
        return self._found.sub("", text) if self._found else text

    def show(self, text: str) -> str:
        """Undoes `hold`."""
        texts = {i: control for control, i in self.ids.items()}
        return _HELD.sub(lambda match: texts[int(match.group(1))], text)

    def encode(self, tokenizer: Any, text: str) -> list[int]:
        """Token ids of a rendered text: its control tokens as such, those that are held as plain characters."""
        if not _HELD.search(text):
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert self._found is not None
        ids: list[int] = []
        for part in re.split(f"({self._found.pattern})", text):
            if part in self.ids:
                ids.append(self.ids[part])
                continue
            if ids and ids[-1] in {self.ids[control] for control in self.strips}:
                part = part.lstrip()
            if part:
                plain = self.show(part)
                ids += tokenizer(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


_CACHE: "WeakKeyDictionary[Any, tuple[int, Controls]]" = WeakKeyDictionary()


def without_end(text: str, ends: Collection[str]) -> str:
    """`text` without the end tokens (their texts) that it ends with: the template writes its own."""
    while True:
        shorter = text.rstrip()
        end = next((end for end in ends if end and shorter.endswith(end)), None)
        if end is None:
            return text
        text = shorter[: -len(end)].rstrip()
