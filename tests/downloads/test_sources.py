import pytest

from velatura.downloads.sources import CivitaiSource, UrlSource, read_source
from velatura.errors import DownloadFailed
from velatura.formats.hub import HubReference


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("civitai:4201", CivitaiSource(4201)),
        ("civitai:4201@130072", CivitaiSource(4201, 130072)),
        ("https://civitai.com/models/4201", CivitaiSource(4201)),
        ("https://civitai.com/models/4201/realistic-vision?modelVersionId=130072", CivitaiSource(4201, 130072)),
        ("https://civitai.com/api/download/models/130072?type=Model", CivitaiSource(None, 130072)),
        ("hub:owner/name", HubReference("owner/name")),
        ("hub:owner/na.me-2@v1.0/sub/ink.pt", HubReference("owner/na.me-2", "v1.0", "sub/ink.pt")),
        ("https://huggingface.co/owner/name", HubReference("owner/name")),
        ("https://huggingface.co/owner/name/blob/main/sub/ink.pt", HubReference("owner/name", "main", "sub/ink.pt")),
        (
            "https://huggingface.co/owner/name/resolve/v1/ink.pt?download=true",
            HubReference("owner/name", "v1", "ink.pt"),
        ),
        ("https://example.org/models/1", UrlSource("https://example.org/models/1")),
        ("https://civitai.com/images/7", UrlSource("https://civitai.com/images/7")),
    ],
)
def test_a_source_is_read(text, source):
    assert read_source(text) == source


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("ink", "write civitai:1234, hub:owner/name, or https://..."),
        ("owner/name", "write civitai:1234"),
        ("file:///etc/passwd", "write civitai:1234"),
        ("civitai:", "write civitai:1234, or civitai:1234@5678"),
        ("civitai:ink", "write civitai:1234"),
        ("civitai:1/../../2", "write civitai:1234"),
        ("hub:name", "write hub:owner/name"),
        ("hub:owner/../name", "write hub:owner/name"),
        ("hub:../name", "write hub:owner/name"),
        ("hub:owner/name/../../x", "write hub:owner/name"),
        ("hub:owner/name/", "write hub:owner/name"),
        ("https://", "begins with https://"),
    ],
)
def test_other_sources_are_refused(text, advice):
    with pytest.raises(DownloadFailed) as error:
        read_source(text)
    assert advice in str(error.value)
