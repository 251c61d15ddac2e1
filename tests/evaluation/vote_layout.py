"""What small folders of published votes are made of."""

ODD = 'café, "sitting" \U0001f600'  # a prompt


def touch(folder, *names):
    """Empty files at these places below a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
