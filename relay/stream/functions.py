"""The server-side functions by name, and the library that defines them. Pure: no I/O.

The names carry a digest of the source, so that during a rolling upgrade each version of the relay
calls the functions that it was tested with, and a changed source can not forget to change its version.
"""

from hashlib import sha256
from importlib.resources import files

_SOURCE = files("relay.stream").joinpath("functions.lua").read_text()
VERSION = sha256(_SOURCE.encode()).hexdigest()[:8]
LIBRARY = f"#!lua name=relay_{VERSION}\n" + _SOURCE.replace("@VERSION@", VERSION)

APPEND = f"append_{VERSION}"
OPEN = f"open_{VERSION}"
CLAIM = f"claim_{VERSION}"
TAKE_OVER = f"take_over_{VERSION}"
TIDY = f"tidy_{VERSION}"
SETTLE = f"settle_{VERSION}"
TRIM = f"trim_{VERSION}"

MISSING = "Function not found"
"""What the server answers before the library is loaded, or after it restarted empty."""
