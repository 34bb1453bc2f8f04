import sys
from pathlib import Path

if not __package__:  # run as a folder by its path, where the package is not installed
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.run import main

main()
