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
        ("https://civitai.red/models/4201/realistic-vision?modelVersionId=130072", CivitaiSource(4201, 130072)),
        ("https://civitai.green/models/4201", CivitaiSource(4201)),
        ("https://www.civitai.red/api/download/models/130072", CivitaiSource(None, 130072)),
        ("https://civitai.red/model-versions/130072", CivitaiSource(None, 130072)),
        ("https://civitai.com/api/v1/model-versions/130072", CivitaiSource(None, 130072)),
        ("https://civitai.com/api/v1/models/4201", CivitaiSource(4201)),
        ("civitai.com/models/4201", CivitaiSource(4201)),
        ("Civitai:4201", CivitaiSource(4201)),
        ("urn:air:sd1:lora:civitai:123@456", CivitaiSource(123, 456)),
        ("urn:air:sdxl:checkpoint:civitai:101055@128078", CivitaiSource(101055, 128078)),
        ("URN:AIR:sdxl:embedding:civitai:7", CivitaiSource(7)),
        ("air:sd1:hypernet:civitai:123@456.safetensors", CivitaiSource(123, 456)),
        ("urn:air:sdxl:model:huggingface:stabilityai/sdxl-vae", HubReference("stabilityai/sdxl-vae")),
        ("urn:air:model:huggingface:stabilityai/sdxl-vae@v1.0", HubReference("stabilityai/sdxl-vae", "v1.0")),
        ("huggingface.co/owner/name", HubReference("owner/name")),
        ("https://civitai.red.example.org/models/1", UrlSource("https://civitai.red.example.org/models/1")),
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
        ("urn:air:sd1:lora:civitai:ink", "write civitai:1234"),
        ("urn:air:sd1:lora:civitai:1/../2", "write civitai:1234"),
        ("urn:air:sd1:lora:civitai:", "write it as urn:air:sd1:lora:civitai:1234@5678"),
        ("urn:air:dalle:model:openai:dalle@2", "is a model of openai"),
        ("urn:air:sd1:lora:huggingface:../name", "write hub:owner/name"),
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
