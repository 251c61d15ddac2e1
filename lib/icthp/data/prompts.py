"""When two prompts are one: as CLIP's tokenizer reads them."""

from open_clip.tokenizer import get_clean_fn


def same_prompt(text: str) -> str:
    """A prompt as CLIP's tokenizer cleans it before it cuts it into tokens: broken characters and HTML entities mended, runs of white
    space one space, none around, small letters. Prompts that it makes equal are one prompt: no negatives of each other, on one side of a
    split, and their votes count as one prompt's."""
    return get_clean_fn("lower")(text)


def prompt_groups(prompts: list[str], tokenizer=None) -> list[int]:
    """An id for each prompt, from 0 in the order in which they appear; equal ids: `same_prompt`, or, with a tower's tokenizer (texts ->
    (n, length) int), the same tokens, so that prompts which differ only beyond its length are one."""
    ids = {}
    groups = []
    for prompt in prompts:
        key = same_prompt(prompt) if tokenizer is None else bytes(tokenizer([prompt]).numpy())
        groups.append(ids.setdefault(key, len(ids)))
    return groups
