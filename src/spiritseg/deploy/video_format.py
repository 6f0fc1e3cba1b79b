"""Which kind of video a file is, by its first bytes."""

from __future__ import annotations

__all__ = ["VIDEO_HEAD", "video_format"]

VIDEO_HEAD = 189  # bytes that are enough to tell

# FFmpeg's demuxer by where a kind says what it is. A demuxer is always named: left to guess,
# FFmpeg would take a text file for a playlist and open the files and addresses in it.
_VIDEOS = {
    (4, b"ftyp"): "mov",
    (4, b"moov"): "mov",
    (4, b"mdat"): "mov",
    (4, b"wide"): "mov",
    (4, b"free"): "mov",
    (4, b"skip"): "mov",
    (0, b"\x1a\x45\xdf\xa3"): "matroska",
    (8, b"AVI "): "avi",
    (0, b"\0\0\x01\xba"): "mpeg",
    (0, b"\0\0\x01\xb3"): "mpegvideo",
}
_SYNC, _PACKET = b"\x47", 188  # how each packet of a transport stream begins, and its bytes


def video_format(head: bytes) -> str | None:
    """Return FFmpeg's name of a video's format, from its first bytes; None for no video."""
    for (start, magic), name in _VIDEOS.items():
        if head[start : start + len(magic)] == magic:
            return name
    # A letter G alone is no sign: GIF images have it, and texts.
    packets = head[:1] == _SYNC and head[_PACKET : _PACKET + 1] == _SYNC
    return "mpegts" if packets else None
