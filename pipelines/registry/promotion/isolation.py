"""The process in which logged code runs: the variables it sees, and that it has no network."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

_PASSED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CC", "CXX"),
        *("SPIN_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
    }
)
"""variables that loading and predicting may need, none of which holds a credential"""
_LOCALE = "LC_"
_SET = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""nothing is looked for in the network: whoever starts the process has fetched the weights"""
_UNSHARE = ("--user", "--map-current-user", "--net")
"""A namespace of users beside that of the network: without it root could enter the network of the parent again, and any
user could read the parent's variables in /proc."""

_log = logging.getLogger(__name__)


def isolated_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that runs logged code: a few of those given, and where it finds this release."""
    # guarded by test_logged_code_sees_no_credentials; broken by:
    #   passed = dict(environment)
    passed = {name: value for name, value in environment.items() if name in _PASSED or name.startswith(_LOCALE)}
    return {**passed, **_SET, "PYTHONPATH": os.pathsep.join(sys.path)}


def without_network(command: list[str]) -> list[str]:
    """A command line that runs a command in namespaces of its own; the command itself where the platform forbids it.

    The process id stays that of the command.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        reason = "there is no `unshare`"
    else:
        tried = subprocess.run([unshare, *_UNSHARE, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return [unshare, *_UNSHARE, *command]
        reason = tried.stderr.strip() or f"`unshare` ended with status {tried.returncode}"
    _log.warning(
        "the code of a version is run with a network, and could read the variables of this process in /proc, since "
        "this machine cannot take them away: %s",
        reason,
    )
    return command
