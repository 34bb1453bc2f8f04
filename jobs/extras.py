"""The optional dependencies of commands: one line with the command that installs them where they are missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from typer.core import TyperCommand

from spin.errors import UserError
from spin_neurons import install_command

PIPELINES = ("ray", "mlflow", "fsspec", "s3fs", "deltalake", "boto3", "pandas", "psutil", "tenacity")
"""packages of the extra `pipelines`, by the name under which they are imported"""


def require_pipelines(command: str) -> None:
    """Raise UserError, with the command that installs them, if packages of the extra `pipelines` are missing."""
    missing = [name for name in PIPELINES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{command} needs {', '.join(missing)}, not installed here; run: {install_command('pipelines')}"
        )


class PipelinesCommand(TyperCommand):
    """A command that needs the extra `pipelines`; its `--help` works without."""

    def invoke(self, ctx: Any) -> Any:
        require_pipelines(ctx.command_path)
        return super().invoke(ctx)
