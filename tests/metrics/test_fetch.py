"""`vton weights`, from addresses on this disk: nothing is downloaded in tests."""

import hashlib

import pytest

from vton.config import ConfigError
from vton.metrics import weights
from vton.metrics.fetch import SOURCES, Source, fetch
from vton.models.pretrained import WeightsError

CONTENT = b"what its authors published"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "net.pth"
    path.write_bytes(CONTENT)
    return path


def sources(path, **known):
    return {"net": (Source(path.as_uri(), "sub/net.pth", **known),)}


def test_a_file_is_fetched_once_and_checked_again(published, tmp_path):
    known = sources(published, sha256=DIGEST, size=len(CONTENT))
    ((path, done),) = fetch(["net"], tmp_path / "here", known)
    assert path.read_bytes() == CONTENT and done == "fetched, checked"
    published.unlink()
    assert [done for _, done in fetch(["net"], tmp_path / "here", known)] == ["present, checked"]
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(WeightsError, match=r"sub/net.pth: SHA-256 .*Remove it"):
        list(fetch(["net"], tmp_path / "here", known))


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"sha256": DIGEST, "size": 3}])
def test_another_file_than_the_published_one_is_not_kept(published, tmp_path, known):
    with pytest.raises(WeightsError, match="Nothing was kept"):
        list(fetch(["net"], tmp_path / "here", sources(published, **known)))
    assert not list((tmp_path / "here" / "sub").iterdir())


def test_without_a_published_digest_the_first_fetch_is_trusted_from_then_on(published, tmp_path):
    ((path, done),) = fetch(["net"], tmp_path / "here", sources(published))
    assert "trusted" in done and (path.parent / "net.pth.sha256").read_text().strip() == DIGEST
    path.unlink()
    published.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=DIGEST):
        list(fetch(["net"], tmp_path / "here", sources(published)))


def test_offline_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(
        WeightsError, match=r"cannot fetch file:.*copy the file to .*net.pth yourself.*VTON_METRIC_WEIGHTS"
    ):
        list(fetch(["net"], tmp_path / "here", sources(tmp_path / "absent.pth")))
    with pytest.raises(ConfigError, match=r"alexx.*Did you mean: 'alex'"):
        list(fetch(["alexx"], tmp_path))


def test_what_is_fetched_is_what_evaluation_looks_for(monkeypatch, tmp_path):
    for network, names in weights.FILES.items():
        (source,) = SOURCES[network]
        assert source.path == names[0] and source.url.endswith(names[0])
        if source.sha256:
            assert source.sha256.startswith(names[0].removesuffix(".pth").rsplit("-")[-1]) and len(source.sha256) == 64
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.folder("") is None
    weights.fetched_folder().mkdir(parents=True)
    assert weights.folder("") == weights.fetched_folder() == tmp_path / "vton" / "metric_weights"
    monkeypatch.setenv(weights.VARIABLE, "")
    assert weights.folder("") is None
