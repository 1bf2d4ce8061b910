"""``checkpoint.url``: what is refused before anything is opened, without repeating credentials."""

import pytest

from glm_dist.config.load import load_config
from glm_dist.errors import ConfigError


@pytest.mark.parametrize("url", ["s3://bucket/glm", "gs://bucket", "memory://x", "file:///mnt/glm"])
def test_urls_of_folders_are_accepted(url: str) -> None:
    assert load_config(["experiment=tiny", f"checkpoint.url={url}"]).checkpoint.url == url


@pytest.mark.parametrize(
    ("url", "said", "fix"),
    [
        (
            "s3://me:hunter2@bucket/glm",
            "checkpoint.url=s3://***@bucket/glm has a user or password in it",
            "checkpoint.url=s3://bucket/glm",
        ),
        (
            "https://host/glm?sig=hunter2",
            "checkpoint.url=https://host/glm?*** has parameters in it",
            "checkpoint.url=https://host/glm",
        ),
        ("/mnt/glm", "is not the URL of a folder", "checkpoint.url=s3://<bucket>/<folder>"),
        ("s3:/bucket", "is not the URL of a folder", "checkpoint.url=s3://<bucket>/<folder>"),
        ("s3://", "is not the URL of a folder", "checkpoint.url=s3://<bucket>/<folder>"),
        ("simplecache::s3://b/x", "is not the URL", "checkpoint.url=s3://<bucket>/<folder>"),
    ],
)
def test_what_is_no_url_or_holds_credentials_is_refused(url: str, said: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=tiny", f"checkpoint.url='{url}'"])
    error = caught.value
    assert said in str(error)
    assert (error.key, error.fix) == ("checkpoint.url", fix)
    assert "hunter2" not in f"{error} {error.value} {error.fix}"
