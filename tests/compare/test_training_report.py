"""The report page: one file that needs nothing else."""

import base64
import io
import re

from PIL import Image

from velatura.compare.training_report import Figure, TrainingReport

FIGURE = Figure("A grid", "Rows & columns.", [Image.new("RGB", (6, 4), "red")])


def page(**fields):
    return TrainingReport("neon <b>", "It went well.", [FIGURE], losses=[2.0, 1.0], **fields).html()


def test_the_page_needs_no_other_file_and_no_network():
    html = page()
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<svg" in html
    assert not {"http:", "https:", "<script"} & set(re.findall(r"https?:|<script", html))


def test_pictures_stand_in_the_page_as_they_were():
    [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', page())
    assert Image.open(io.BytesIO(base64.b64decode(data))).getcolors() == [(24, (255, 0, 0))]


def test_text_is_escaped():
    html = page(facts={"loss": "0.1 < 0.2"}, commands={"More & longer": 'velatura generate "a <b>"'})
    for text in ("neon &lt;b&gt;", "0.1 &lt; 0.2", "More &amp; longer", "&quot;a &lt;b&gt;&quot;"):
        assert text in html


def test_every_tag_that_opens_closes():
    lasting = re.findall(
        r"<(/?)(\w+)(?![^<>]*/>)[^<>]*>", re.sub(r"<(meta|img|style.*?</style)[^>]*>", "", page(), flags=re.S)
    )
    opened = [name for slash, name in lasting if not slash]
    closed = [name for slash, name in lasting if slash]
    assert sorted(opened) == sorted(closed)
