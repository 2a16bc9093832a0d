"""What happens to files on disks."""

from pathlib import Path


def truncate(path: Path) -> None:
    """Cut off the end."""
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_byte(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
