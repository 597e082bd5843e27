"""Takes the size of the terminal from the environment: a console made while both are there would keep it for ever."""

import os

for _size in ("COLUMNS", "LINES"):
    os.environ.pop(_size, None)
