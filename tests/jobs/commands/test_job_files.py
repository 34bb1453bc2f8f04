"""Which files `spin submit` sends: named ones alone, none by a link out of the folder, none that holds credentials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.commands import secret_scanner
from jobs.commands.job_files import collect_files, looks_like_credential
from spin.backbone.digest import list_model_files
from spin.errors import UserError
from spin.settings import BackboneSettings
from tests.support import tiny

HUB = BackboneSettings(model="someone/model")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a settings file and files that nobody named."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("settings.yaml", "notes.txt", ".env", "mlflow.db", "data/raw.csv", ".aws/credentials"):
        write(folder / name)
    return folder


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name, encoding="utf-8")
    return path


def collect(*include: str, backbone: BackboneSettings = HUB) -> list[str]:
    return sorted(collect_files("settings.yaml", include, backbone))


@pytest.mark.usefixtures("folder")
def test_without_include_the_settings_file_alone_is_sent() -> None:
    """Neither credentials nor data beside it are sent, and none of them is an error."""
    assert collect() == ["settings.yaml"]


def test_included_files_folders_and_globs_are_sent(folder: Path) -> None:
    """Files of git, of a virtual environment and of Python's cache in a folder are left out."""
    for name in (
        "a/b/c.txt",
        "a/.hidden",
        "a/.git/config",
        "a/.venv/pyvenv.cfg",
        "a/__pycache__/x.pyc",
        "a/.gitignore",
    ):
        write(folder / name)
    for name in ("x1.json", "x2.json", "y.json", "[x].json"):
        write(folder / name)
    assert collect("a") == collect("a/") == ["a/.hidden", "a/b/c.txt", "settings.yaml"]
    assert collect("x*.json", "./notes.txt") == ["notes.txt", "settings.yaml", "x1.json", "x2.json"]
    assert collect("[x].json") == ["[x].json", "settings.yaml"]  # a name before it is a pattern
    assert collect("a/**/*.txt") == ["a/b/c.txt", "settings.yaml"]
    assert collect_files("settings.yaml", ["notes.txt"], HUB)["notes.txt"] == folder / "notes.txt"


@pytest.mark.parametrize("entry", ["/etc/hostname", "../other", "a/../../other", "none", "none*", ".git", ".gitignore"])
def test_an_include_that_names_nothing_in_the_folder_is_refused(folder: Path, entry: str) -> None:
    """Lists of files that Ray would leave out are never sent."""
    write(folder / ".gitignore")
    write(folder / ".git" / "config")
    with pytest.raises(UserError, match=r"^--include .*: (expected|names no file)"):
        collect(entry)


def test_no_link_out_of_the_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    """The message names the link and its target. A link to a file in the folder is sent as what it leads to."""
    outside = write(tmp_path / "outside.txt")
    (folder / "inner.txt").symlink_to("notes.txt")
    assert collect_files("settings.yaml", ["inner.txt"], HUB)["inner.txt"] == folder / "notes.txt"
    (folder / "data" / "link.txt").symlink_to(outside)
    for entry in ("data", "data/*.txt", "data/link.txt"):
        with pytest.raises(UserError, match=rf"data/link.txt leads out of the working directory, to {outside}"):
            collect(entry)
    (folder / "data" / "link.txt").unlink()
    (folder / "data" / "up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="data/up is a link to a folder, which is not followed"):
        collect("data")
    with pytest.raises(UserError, match=f"data/up leads out of the working directory, to {tmp_path};"):
        collect("data/up")  # and the folder is not even listed


def test_what_is_no_plain_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "broken").symlink_to("nothing")
    for entry in ("pipe", "broken"):
        with pytest.raises(UserError, match=f"{entry} is not a file that can be sent"):
            collect(entry)


@pytest.mark.parametrize(
    "name",
    [
        *(".env", ".env.local", "prod.env", ".aws/config", ".netrc", ".ssh/config", "server.pem", "server.key"),
        *("id_rsa", "id_ed25519.pub", "mlflow.db", "mlflow.db-wal", ".git-credentials", "credentials", ".pgpass"),
        *("aws_credentials.json", "secrets.yaml", ".kube/config", "SERVER.PEM", "conf/.env"),
    ],
)
def test_names_that_look_like_credentials_are_refused_and_named(folder: Path, name: str) -> None:
    """Also in an included folder, and behind a link with another name."""
    file = write(folder / "included" / name)
    (folder / "harmless.txt").symlink_to(file)
    for entry in (f"included/{name}", "included", "harmless.txt"):
        with pytest.raises(UserError) as error:
            collect(entry)
        assert "looks like a credential" in str(error.value)
        assert ("harmless.txt" if entry == "harmless.txt" else f"included/{name}") in str(error.value)


def test_a_settings_file_named_like_a_credential_is_refused(folder: Path) -> None:
    write(folder / "secrets.yaml")
    with pytest.raises(UserError, match=r"secrets\.yaml: looks like a credential"):
        collect_files("secrets.yaml", [], HUB)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "special_tokens_map.json", "keys.csv", "environment.yaml", "keep-credentials-safe.md"]
)
def test_other_names_do_not_look_like_credentials(name: str) -> None:
    assert not looks_like_credential(name)


def test_many_refused_files_are_counted(folder: Path) -> None:
    for number in range(7):
        write(folder / "keys" / f"{number}.pem")
    with pytest.raises(UserError, match=r"^keys/0\.pem, .*, keys/4\.pem and 2 more: looks like a credential"):
        collect("keys")


def test_a_backbone_in_the_folder_is_sent_with_the_files_that_a_model_loads_from(folder: Path) -> None:
    """So the driver of the job reads it there and publishes it to the workers; other files of its folder stay here."""
    files = [path.relative_to(folder) for path in list_model_files(tiny.save_bert(folder / "models" / "bert"))]
    write(folder / "models" / "bert" / "training.log")
    write(folder / "models" / "bert" / "modeling.py")
    backbone = BackboneSettings(model="models/bert")
    assert collect(backbone=backbone) == sorted(["settings.yaml", *map(str, files)])
    with_code = BackboneSettings(model="./models/bert/", trust_remote_code=True)
    assert collect(backbone=with_code) == sorted(["settings.yaml", "models/bert/modeling.py", *map(str, files)])
    write(folder / "small.gguf")
    assert collect(backbone=BackboneSettings(model="small.gguf")) == ["settings.yaml", "small.gguf"]
    assert collect(backbone=BackboneSettings(model=str(folder / "models" / "bert"))) == ["settings.yaml"]


def test_a_backbone_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """By `..` or by a link: no node would find it."""
    tiny.save_bert(tmp_path / "bert")
    (folder / "linked").symlink_to(tmp_path / "bert")
    for model in ("../bert", "../none", "linked"):
        with pytest.raises(UserError, match=f"backbone.model is '{model}', which leads out of the working directory"):
            collect(backbone=BackboneSettings(model=model))


@pytest.mark.parametrize(
    "name",
    [
        *(".envrc", ".azure", ".boto", ".databrickscfg", ".docker", ".dockercfg", ".gnupg", ".htpasswd", ".my.cnf"),
        *("_netrc", ".npmrc", ".pypirc", ".s3cfg", ".secrets", ".vault-token", "a.gpg", "a.jks", "a.kdbx"),
        *("a.keystore", "a.p12", "a.pfx", "a.ppk", "gcloud", "id_dsa", "id_ecdsa", "kubeconfig.yaml", "secret"),
        *("secret.txt", "secrets", "service-account-1.json", "service_account.json", "token", "token.txt"),
    ],
)
def test_usual_names_of_credentials_look_like_them(name: str) -> None:
    assert looks_like_credential(name)


@pytest.mark.usefixtures("folder")
def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", "data")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="data cannot be read: Permission denied"):
        collect("data")


AWS = "AKIAIOSFODNN7EXAMPLF"  # pragma: allowlist secret
KEY = "-----BEGIN RSA PRIVATE KEY-----"  # pragma: allowlist secret


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("notes.txt", f"key {AWS} of the store", "AWS Access Key"),
        ("run.sh", KEY, "Private Key"),
        ("conf/app.yaml", "db_password: hunter2hunter2", "Secret Keyword"),
        ("app.py", 'url = "postgresql://me:hunter2hunter2@host/db"', "Basic Auth Credentials"),
        ("hub.yaml", f"token: hf_{'hunter2' * 5}", "Credential"),
        ("call.txt", "Authorization: Bearer hunter2hunter2", "Credential"),
        ("run.bat", "set MLFLOW_TRACKING_TOKEN=hunter2hunter2", "Credential"),
        ("data.txt", "https://host.blob/x?sv=2024&sig=hunter2hunter2%3D&se=1", "Credential"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_that_holds_a_secret_is_refused_and_its_line_named(
    folder: Path, name: str, line: str, kind: str, encoding: str
) -> None:
    """Whatever its name; also in an included folder. Who knows that it is none may say so in the line."""
    file = write(folder / "included" / name)
    file.write_text(f"one\n{line}\n", encoding=encoding)
    for entry in (f"included/{name}", "included"):
        with pytest.raises(UserError) as error:
            collect(entry)
        assert f"included/{name} line 2: {kind}: looks like a secret" in str(error.value)
        assert "hunter2" not in str(error.value)
        assert AWS not in str(error.value)
    file.write_text(f"one\n{line}  # pragma: allowlist secret\n", encoding=encoding)
    assert collect("included") == [f"included/{name}", "settings.yaml"]


def test_a_secret_beside_bytes_that_are_no_text_is_found(folder: Path) -> None:
    (folder / "latin.py").write_bytes(b'name = "Andr\xe9"\ndb_password = "hunter2hunter2"\n')
    with pytest.raises(UserError, match=r"latin\.py line 2: Secret Keyword: looks like a secret"):
        collect("latin.py")


def test_files_that_are_not_searched_in_full_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many files, the largest are searched in short, and keys of known forms are found there too."""
    monkeypatch.setattr(secret_scanner, "_THOROUGH", 1_000)
    (folder / "small.py").write_text("x = 1\n")
    assert collect("small.py")
    assert not caplog.records
    (folder / "long.txt").write_text("a text\n" * 1_000)
    (folder / "huge.txt").write_text("a text\n" * 200_000)
    assert collect("*.txt")
    assert "1 files were searched for keys and tokens of known forms alone" in caplog.text
    assert "1 files of more than 1 MB were not searched" in caplog.text
    (folder / "long.txt").write_text("a text\n" * 1_000 + AWS)
    with pytest.raises(UserError, match=r"long\.txt line 1001: Credential"):
        collect("*.txt")


def test_code_that_passes_secrets_on_by_name_holds_none(folder: Path) -> None:
    code = 'connect(api_key=settings.api_key, password=os.environ["PASSWORD"], access_token=token_of(user_1))\n'
    (folder / "app.py").write_text(code + 'headers = {"Authorization": f"Bearer {token}"}\nsignature=signature\n')
    assert "app.py" in collect("app.py")


def test_settings_that_hold_a_secret_are_refused(folder: Path) -> None:
    """One that names the variable in which a key is does not."""
    settings = folder / "settings.yaml"
    settings.write_text("api_key_env: NAME_OF_A_VARIABLE\nrevision: 0123456789abcdef0123456789abcdef01234567\n")
    assert collect() == ["settings.yaml"]
    settings.write_text("api_key: hunter2hunter2\n")
    with pytest.raises(UserError, match=r"settings\.yaml line 1: Secret Keyword: looks like a secret"):
        collect()


def test_data_and_weights_are_not_taken_for_secrets(folder: Path) -> None:
    """Digests and ids are none, bytes are not read as text, and files from which a backbone is loaded are not read."""
    (folder / "ids.csv").write_text('id,text\n"0123456789abcdef0123456789abcdef","a password is a word"\n')
    (folder / "bytes.bin").write_bytes(bytes(range(256)) * 10)
    bert = tiny.save_bert(folder / "models" / "bert")
    (bert / "vocab.txt").write_text(f"{AWS}\n")
    assert {"ids.csv", "bytes.bin"} <= set(collect("*.csv", "*.bin", backbone=BackboneSettings(model="models/bert")))
