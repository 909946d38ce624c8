"""The page in a browser: pictures are dropped or chosen, their classes are seen."""

import base64

import pytest
from asking import NO_IMAGE, expected, loaded, picture, running
from browsing import requested, visit

webdriver = pytest.importorskip("selenium.webdriver")
ActionChains, Keys = webdriver.ActionChains, webdriver.Keys

CLASSES = ["<img src=x onerror=alert(1)>", "\u202eterces", "a" * 300, "", *"efghij"]
"""Names of folders may hold anything."""

DROP = """
const [name, content] = arguments;
const data = new DataTransfer();
data.items.add(new File([Uint8Array.from(atob(content), (byte) => byte.charCodeAt(0))], name));
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("ckpt"), classes=CLASSES)


@pytest.fixture
def address(predictor):
    with running(predictor) as (address, _):
        yield address


def card(browser, number=0):
    """A picture's card, once it is answered."""
    browser.find_element("css selector", f"#cards li.card:nth-child({number + 1}):not([aria-busy])")
    return browser.find_elements("css selector", "#cards li.card")[number]


def show(browser, address, width):
    visit(browser, address, width)
    browser.find_element("css selector", "#about bdi")  # once the script has run, which the driver does not wait for


def assert_quiet(browser, address):
    """Assert that nothing was reported and nothing else was asked."""
    assert browser.get_log("browser") == []
    urls = requested(browser)
    assert f"{address}/predict" in urls
    assert all(url.startswith((f"{address}/", f"blob:{address}/")) for url in urls), urls


@pytest.mark.parametrize("width", [1280, 390])
def test_a_chosen_picture_shows_its_classes(browser, address, predictor, tmp_path, width):
    content = picture(1)
    path = tmp_path / "<b>cat.png"
    path.write_bytes(content)
    show(browser, address, width)
    browser.find_element("id", "choose").send_keys(str(path))
    shown = card(browser)
    names = [one.get_property("textContent") for one in shown.find_elements("css selector", ".classes .name")]
    percents = [one.text for one in shown.find_elements("css selector", ".classes .percent")]
    prediction = expected(predictor, content)
    assert names == [label for label, _ in prediction.top]
    assert percents == [f"{100 * prob:.1f} %" for _, prob in prediction.top]
    assert shown.find_element("css selector", ".file").text == "<b>cat.png"
    assert shown.find_element("css selector", "img").get_property("naturalWidth") == 32
    assert prediction.label in browser.find_element("id", "status").get_property("textContent")
    sizes = browser.execute_script("return [document.documentElement].flatMap((e) => [e.scrollWidth, e.clientWidth])")
    assert sizes[0] == sizes[1] <= width
    assert browser.find_element("id", "about").text == "test · 10 classes · probabilities are uncalibrated"
    assert_quiet(browser, address)


def test_a_dropped_file_has_its_error_beside_it(browser, address):
    show(browser, address, 1280)
    browser.execute_script(DROP, "notes.jpg", base64.b64encode(NO_IMAGE).decode())
    assert "notes.jpg\nNot classified: a web page, not an image." in card(browser).text
    browser.execute_script(DROP, "fine.png", base64.b64encode(picture()).decode())
    assert "fine.png" in card(browser).text  # the newest is first
    assert "notes.jpg" in card(browser, 1).text


def test_the_keyboard_reaches_what_there_is_to_do(browser, address):
    show(browser, address, 1280)
    browser.execute_script(DROP, "a.png", base64.b64encode(picture()).decode())
    card(browser)
    reached = []
    for _ in range(2):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.switch_to.active_element.get_attribute("id"))
    assert reached == ["choose", "clear"]
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.querySelectorAll('.card').length") == 0
    assert browser.switch_to.active_element.get_attribute("id") == "choose"
    for field in browser.find_elements("css selector", "input"):
        assert browser.execute_script("return arguments[0].labels.length", field) == 1
