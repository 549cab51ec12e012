from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scanned_files import smooth, write_files

from bench.scan.page import LARGEST_PICTURE, data_url

NASTY = "<script>alert(1)</script>\"'&{{ 7*7 }}.png"


class Tags(HTMLParser):
    """Counts tags and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]


@pytest.fixture
def page(command, checkpoint, images, clean, tmp_path) -> str:
    write_files(images, smooth(1, 9), first=99)
    # A slash cannot stand in a file name.
    (images / "0099.png").rename(images / NASTY.replace("/", "|"))
    (images / f"broken {NASTY.replace('/', '|')}").write_text("no image")
    arguments = ("--images", images, "--auxiliary", clean, "--defenses", "mahalanobis")
    result = command(checkpoint, *arguments, "--top", 100)
    assert result.exit_code == 0, result.output
    return (tmp_path / "scan-epoch_3" / "report.html").read_text()


def test_file_names_are_shown_and_never_run(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;|script&gt;") == 3
    assert "{{ 7*7 }}" in page


def test_the_page_needs_no_network(page):
    tags = Tags()
    tags.feed(page)
    assert tags.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in tags.links)
    assert not {"script", "link", "iframe", "object"} & set(tags.tags)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_every_image_is_shown_once_at_most_and_the_flagged_ones_are_framed(page):
    assert page.count("<figure") == 61
    assert 6 <= page.count('<figure class="flagged"') < 20


def test_pictures_are_embedded_exactly_when_small_and_smaller_when_large():
    def read(url):
        data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(data)))

    small = smooth(1, 0)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(read(data_url(small)), small)
    assert read(data_url(np.zeros((300, 200, 3), dtype=np.uint8))).shape[0] == LARGEST_PICTURE
