"""The headers of what viewers get, of all refusals, and of what operators read."""

PRIVATE = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
"""It is for one reader, at this moment, and is what it says it is; and its address, which may have a ticket
in it, is nobody else's business."""
