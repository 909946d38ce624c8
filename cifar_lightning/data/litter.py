"""Files and folders that systems and programs leave behind among a user's images."""

_NAMES = frozenset(
    {
        # Windows: previews of pictures, looks of a folder, deleted files, a drive's own data
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "picasa.ini",
        "$recycle.bin",
        "system volume information",
        # macOS: an icon of a folder, what its archives and network drives have beside the files
        "icon\r",
        "__macosx",
        "network trash folder",
        "temporary items",
        "thevolumesettingsfolder",
        # Linux: what a check of the file system has found
        "lost+found",
        # Synology and QNAP: previews, deleted files, snapshots
        "@eadir",
        "@tmp",
        "@recycle",
        "#recycle",
        "#snapshot",
        # Python
        "__pycache__",
    }
)
"""Names in lower case: the systems that leave them do not tell upper case from lower."""

_ENDINGS = (
    # Windows notes beside a file that it was downloaded. Elsewhere that is a file of its own, its colon kept or not.
    ":zone.identifier",
    "\uf03azone.identifier",
    # and that previews are encrypted
    ":encryptable",
    # Synology: what else a Mac has written about a file
    "@synoresource",
    "@synoeastream",
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, as ``.DS_Store``, ``._0.png`` and ``.ipynb_checkpoints`` are."""
    return name.startswith(".")


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or known as one that a system or program leaves behind.

    >>> [name for name in ("cat", "@eaDir", "Thumbs.db", ".DS_Store", "0.jpg:Zone.Identifier") if not is_litter(name)]
    ['cat']
    """
    lower = name.lower()
    return is_hidden(name) or lower in _NAMES or lower.endswith(_ENDINGS)
