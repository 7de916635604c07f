"""`vton weights`, from addresses on this disk: nothing is downloaded in tests."""

import hashlib

import pytest

from tests.served import Answer, serving
from vton.config import ConfigError
from vton.errors import UserError
from vton.weights import metric_networks
from vton.weights.fetch import SOURCES, PublishedFile, fetch

CONTENT = b"what its authors published"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "net.pth"
    path.write_bytes(CONTENT)
    return path


def sources(path, **known):
    return {"net": (PublishedFile(path.as_uri(), "sub/net.pth", **known),)}


def test_a_file_is_fetched_once_and_checked_again(published, tmp_path):
    known = sources(published, sha256=DIGEST, size=len(CONTENT))
    ((path, done),) = fetch(["net"], tmp_path / "here", known)
    assert path.read_bytes() == CONTENT and done == "fetched, checked"
    published.unlink()
    assert [done for _, done in fetch(["net"], tmp_path / "here", known)] == ["present, checked"]
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UserError, match=r"sub/net.pth: SHA-256 .*Remove it"):
        list(fetch(["net"], tmp_path / "here", known))


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"sha256": DIGEST, "size": 3}])
def test_another_file_than_the_published_one_is_not_kept(published, tmp_path, known):
    with pytest.raises(UserError, match="Nothing was kept"):
        list(fetch(["net"], tmp_path / "here", sources(published, **known)))
    assert not list((tmp_path / "here" / "sub").iterdir())


def test_without_a_published_digest_the_first_fetch_is_trusted_from_then_on(published, tmp_path):
    ((path, done),) = fetch(["net"], tmp_path / "here", sources(published))
    assert "trusted" in done and (path.parent / "net.pth.sha256").read_text().strip() == DIGEST
    path.unlink()
    published.write_bytes(b"something else")
    with pytest.raises(UserError, match=DIGEST):
        list(fetch(["net"], tmp_path / "here", sources(published)))


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>Sign in</html>", b""])
def test_a_page_in_place_of_a_file_is_not_trusted(published, tmp_path, content):
    published.write_bytes(content)
    with pytest.raises(UserError, match=r"sub/net\.pth: it is .*Nothing was kept"):
        list(fetch(["net"], tmp_path / "here", sources(published)))
    assert not list((tmp_path / "here" / "sub").iterdir())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            Answer(CONTENT[:10], {"Content-Length": len(CONTENT)}),
            f"ended after 10 of {len(CONTENT)} bytes",
        ),
        (Answer(b"1a\r\nwhat its", {"Transfer-Encoding": "chunked"}), "IncompleteRead"),
        (Answer(CONTENT[:10]), "does not say how long it is"),
        (Answer(status=403), "Forbidden"),
    ],
)
def test_a_cut_download_is_never_trusted(answer, problem, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(lambda path: answer) as address, pytest.raises(UserError, match=problem):
        list(
            fetch(["net"], tmp_path, {"net": (PublishedFile(f"{address}/net.pth", "sub/net.pth"),)})
        )
    assert not list((tmp_path / "sub").iterdir())  # no part of it, and no digest


def test_a_server_that_says_no_length_is_believed_where_the_digest_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(lambda path: Answer(CONTENT)) as address:
        ((path, done),) = fetch(
            ["net"], tmp_path, {"net": (PublishedFile(f"{address}/net.pth", "net.pth", DIGEST),)}
        )
    assert path.read_bytes() == CONTENT and done == "fetched, checked"


def test_the_digits_in_a_files_name_are_checked(published, tmp_path):
    right, wrong = (
        {"net": (PublishedFile(published.as_uri(), f"net-{d}.pth"),)} for d in (DIGEST[:8], "0" * 8)
    )
    assert [done for _, done in fetch(["net"], tmp_path / "here", right)] == ["fetched, checked"]
    with pytest.raises(UserError, match=f"SHA-256 {DIGEST}, expected 00000000"):
        list(fetch(["net"], tmp_path / "here", wrong))
    assert [path.name for path in (tmp_path / "here").iterdir()] == [f"net-{DIGEST[:8]}.pth"]


def test_offline_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError,
        match=r"cannot fetch file:.*copy the file to .*net.pth yourself.*VTON_METRIC_WEIGHTS",
    ):
        list(fetch(["net"], tmp_path / "here", sources(tmp_path / "absent.pth")))
    with pytest.raises(ConfigError, match=r"alexx.*Did you mean: 'alex'"):
        list(fetch(["alexx"], tmp_path))


def test_what_is_fetched_is_what_evaluation_looks_for(monkeypatch, tmp_path):
    for network, names in metric_networks.FILES.items():
        (source,) = SOURCES[network]
        assert source.path == names[0] and source.url.endswith(names[0])
        if source.sha256:
            assert (
                source.sha256.startswith(names[0].removesuffix(".pth").rsplit("-")[-1])
                and len(source.sha256) == 64
            )
    monkeypatch.delenv(metric_networks.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert metric_networks.folder("") is None
    metric_networks.fetched_folder().mkdir(parents=True)
    assert (
        metric_networks.folder("")
        == metric_networks.fetched_folder()
        == tmp_path / "vton" / "metric_weights"
    )
    monkeypatch.setenv(metric_networks.VARIABLE, "")
    assert metric_networks.folder("") is None
