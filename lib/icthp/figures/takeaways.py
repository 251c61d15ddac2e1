"""What a notebook concludes, in a box, made of the numbers that it has just measured."""

import html
import re


class Takeaway(str):
    """Text with `**bold**` and `*italic*` words; a box in a notebook, plain text elsewhere."""

    def __repr__(self) -> str:
        return re.sub(r"\*+", "", self)

    def _repr_html_(self) -> str:
        text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(self))
        text = re.sub(r"\*(.+?)\*", r"<i>\1</i>", text)
        return f'<div class="takeaway" style="border-left: 4px solid #0072b2; padding: .4em 1em; max-width: 60em">{text}</div>'


def takeaway(*sentences: str, scale: str = "") -> Takeaway:
    """The sentences in one box. scale: of the numbers in them, said first."""
    return Takeaway(" ".join([f"**Takeaway{f' ({scale})' if scale else ''}.**", *sentences]))
