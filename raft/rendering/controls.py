"""Control tokens such as `<|im_end|>` and `</s>` in the texts of rows.

A tokenizer recognises them anywhere, so a text that quotes one could end its own turn. Here only those written by the
template become control tokens; those in texts are encoded as plain characters. Refusing such rows would exclude corpora
that quote templates, or HTML, where `<s>` is a tag.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Between rendering and encoding, a control token of a text is replaced by its id between two private-use characters,
# which templates copy unchanged.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class Controls:
    """The control tokens of a tokenizer."""

    ids: Mapping[str, int]
    """Text -> token id, the longest text first."""
    strips: Collection[str] = ()
    """Texts of the control tokens that absorb the white space after them (`rstrip` of the tokenizer)."""
    _found: re.Pattern[str] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.ids:
            object.__setattr__(self, "_found", re.compile("|".join(map(re.escape, self.ids))))

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Controls":
        """The control tokens of a transformers tokenizer; cached."""
        size = len(tokenizer)
        known = _CACHE.get(tokenizer)
        if known is not None and known[0] == size:
            return known[1]
        known_tokens = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own tokenizers have no such list
        added = {t.content: (i, t.rstrip) for i, t in known_tokens.items() if t.special and t.content}
        controls = cls(
            {text: added[text][0] for text in sorted(added, key=len, reverse=True)},
            frozenset(text for text, (_, strips) in added.items() if strips),
        )
        _CACHE[tokenizer] = (size, controls)
        return controls

    def first_in(self, text: str) -> str | None:
        """The first control token in `text`."""
        match = self._found.search(text) if self._found else None
        return match.group() if match else None

    def hold(self, value: Any) -> Any:
        """Escapes the control tokens in `value` (a text, or lists and mappings of texts); `encode` reads it."""
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
        """Reverses `hold`."""
        texts = {i: control for control, i in self.ids.items()}
        return _HELD.sub(lambda match: texts[int(match.group(1))], text)

    def encode(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
        """Token ids of a rendered text: control tokens as such, escaped ones as plain characters."""
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


_CACHE: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Controls]]" = WeakKeyDictionary()


def without_end(text: str, ends: Collection[str]) -> str:
    """`text` without the end tokens at its end. ends: texts of these tokens. The template adds its own."""
    while True:
        shorter = text.rstrip()
        end = next((end for end in ends if end and shorter.endswith(end)), None)
        if end is None:
            return text
        text = shorter[: -len(end)].rstrip()
