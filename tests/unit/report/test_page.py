"""Parts of the page: everything is escaped, figures cannot collide."""

from incdet.report import page

NASTY = '<script>alert("x")</script> & co'


def test_values_of_every_shape_are_escaped():
    for content in (NASTY, [NASTY], {NASTY: NASTY}, {"a": {NASTY: NASTY}, "b": {NASTY: 1}}, [[NASTY], [NASTY]]):
        html = page.value(content)
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_values_are_readable():
    assert page.value(None) == page.value([]) == page.value({}) == "–"
    assert page.value(True) == "yes"
    assert page.value(0.123456) == "0.1235"
    nested = page.value({"circle": {"precision": 0.5, "recall": None}, "ring": {"precision": 1.0, "given": 3}})
    assert nested.count("<table>") == 1
    assert [nested.count(f">{word}<") for word in ("circle", "ring", "precision", "recall", "given")] == [1] * 5


def test_only_the_stamps_of_the_runs_become_badges():
    html = page.loud("<a> [ORACLE] and [OTHER]", ["oracle"])
    assert html == '&lt;a&gt; <strong class="badge">ORACLE</strong> and [OTHER]'


def test_numbers_are_set_to_the_right_under_headers_that_are_too():
    html = page.table(["run", "old", "note"], [["a", "70.1", "fine"], ["b", "–", "1 of 2"]])
    assert '<th scope="col" class="number">old' in html
    assert '<th scope="col">note' in html
    assert html.count('<td class="number">') == 2


def test_figures_on_one_page_share_no_ids_and_take_the_pages_colour():
    svg = b'<?xml version="1.0"?><svg viewBox="0 0 1 1"><defs><path id="p1"/></defs><g clip-path="url(#p1)"/>'
    svg += b'<use href="#p1" style="stroke: #1b1f24"/></svg>'
    html = page.figure(svg, "one", 'all "runs"', "a heading")
    assert 'id="one-p1"' in html
    assert "url(#one-p1)" in html
    assert 'href="#one-p1"' in html
    assert "stroke: currentColor" in html
    assert 'aria-label="all &quot;runs&quot;"' in html
    assert "<?xml" not in html


def test_the_title_is_escaped_and_the_document_is_whole():
    html = page.page(NASTY, "<p>body $5</p>", "1.0")
    assert "<script" not in html
    assert "<p>body $5</p>" in html
    assert html.endswith("</html>\n")


def test_shaded_cells_stand_under_upright_names_where_these_are_long():
    rows = [(page.loud(NASTY, []), [("80", "background:#fff;color:black", "−3"), ("–", "", "")])]
    html = page.heat_table([NASTY, "b"], rows, "below", [("task <1>", 2)])
    assert "<script" not in html
    assert html.count('class="upright"') == 2
    assert '<td style="background:#fff;color:black">80<small>−3</small></td><td style="">–</td>' in html
    assert '<th scope="colgroup" colspan="2">task &lt;1&gt;</th>' in html
    assert "upright" not in page.heat_table(["0", "1"], rows, "")


def test_a_number_with_its_deviation_is_set_to_the_right():
    html = page.table(["run", "old"], [["a", "70.1<small>± 0.3</small>"]], dense=True)
    assert '<td class="number">70.1<small>± 0.3</small></td>' in html
    assert '<table class="dense">' in html
