"""Chromium, driven by chromedriver; tests that want it are skipped where it is missing."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

WIDE = """
const scrolls = e => e && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
const root = document.documentElement;
return [...document.querySelectorAll("main *")]
  .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1)
  .filter(e => e.checkVisibility({visibilityProperty: true}) && !scrolls(e.parentElement))
  .map(e => e.outerHTML.slice(0, 120))
  .concat(root.scrollWidth > root.clientWidth + 1 ? ["the page scrolls sideways"] : []);
"""
DEAD = """
const all = document.querySelectorAll(".ban-explorer:not([data-kind=live_training])");
return [...all].filter(e => !e.querySelector(".ban-live")).map(e => e.id);
"""
CHECK = """
const done = arguments[0], serious = ["serious", "critical"], contrast = "color-contrast";
const shown = node => node.html.slice(0, 150);
const moving = document.getAnimations().filter(a => a.effect.getTiming().iterations !== Infinity);
const alike = [...document.querySelectorAll("section:has(> dl.py)")].slice(5).map(e => ["#" + CSS.escape(e.id)]);
const some = {include: [["html"]], exclude: alike}, most = {rules: {[contrast]: {enabled: false}}};
const run = (where, how) => axe.run(where, {resultTypes: ["violations"], ...how}).then(all => all.violations);
Promise.allSettled(moving.map(a => a.finished))
  .then(() => run(document, most)).then(all => run(some, {runOnly: [contrast]}).then(more => [...all, ...more]))
  .then(all => all.filter(v => serious.includes(v.impact)).map(v => [v.id, v.nodes.slice(0, 3).map(shown)]))
  .then(done, error => done([String(error)]));
"""  # once colors have changed; contrast is slow, so only in the first of the sections that list the library


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and chromedriver are not installed, so nothing is looked at in a browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    window.set_page_load_timeout(300)
    window.set_script_timeout(1500)
    yield window
    window.quit()


def visit(browser, address, width=1280, theme="light"):
    """Open a page (a path, or text) in a window of this width and color scheme."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 700},
    )
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get(address if isinstance(address, str) else address.as_uri())


def findings(browser, page, width, theme):
    """{kind: what is wrong} of a page as a reader meets it: looks, console, network, and axe's serious findings."""
    import axe_core_python

    browser.get_log("performance"), browser.get_log("browser")
    visit(browser, page, width, theme)
    browser.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked, "requests were not logged"
    found = {
        "console": [e["message"] for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")],
        "other servers": [url for url in asked if not url.startswith(("file:", "data:", "blob:"))],
        "wide": browser.execute_script(WIDE),
        "axe": browser.execute_async_script(CHECK),
        "dead explorers": browser.execute_script(DEAD),
    }
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    return {kind: what for kind, what in found.items() if what}


def all_of(where, selector):
    return where.find_elements(By.CSS_SELECTOR, selector)


# Shapes of charts that are drawn outside of their picture, by more than a dot's radius.
SPILLS = """
return [...arguments[0].querySelectorAll("svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect(), room = 8;
  return [...svg.querySelectorAll("path, circle, rect, polyline, line")]
    .filter(e => e.checkVisibility({visibilityProperty: true}))
    .filter(e => { const b = e.getBoundingClientRect();
      return b.top < box.top - room || b.bottom > box.bottom + room || b.left < box.left - room || b.right > box.right + room; })
    .map(e => e.outerHTML.slice(0, 120));
});
"""


def said(root):
    """What a screen reader hears: all text that is announced when it changes."""
    return " ".join(part.text for part in all_of(root, "[aria-live]"))


def play(driver, root):
    """Use every control by keyboard, those that can be clicked or dragged by mouse too. Returns their names.

    The announced text changes with each, and nothing is drawn outside of its picture.
    """
    names, controls = [], "input, select, button, svg[tabindex]"
    for place in range(len(all_of(root, controls))):
        control = all_of(root, controls)[place]
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", control)
        tag, kind, name = control.tag_name, control.get_attribute("type"), control.accessible_name
        assert name, control.get_attribute("outerHTML")
        if not control.is_enabled():
            continue
        heard = (lambda part: part.text) if control.get_attribute("aria-expanded") else said  # a row that opens

        def changes(use, *given, name=name, heard=heard):
            before = heard(root)
            use(*given)
            assert heard(root) != before, f"{name}: {before}"
            assert driver.execute_script(SPILLS, root) == [], name

        if tag == "select":
            first, second = (Keys.DOWN, Keys.UP) if control.get_property("selectedIndex") == 0 else (Keys.UP, Keys.DOWN)
            changes(control.send_keys, first)
            control.send_keys(second)  # so that the next control has something to do
        elif kind == "range":
            low, high, value = (float(control.get_property(each)) for each in ("min", "max", "value"))
            changes(control.send_keys, Keys.LEFT if value == high else Keys.RIGHT)
            right = 2 * float(control.get_property("value")) < low + high  # there is room for the drag
            far = round(control.size["width"] * (0.3 if right else -0.3))
            changes(ActionChains(driver).click_and_hold(control).move_by_offset(far, 0).release().perform)
        elif kind == "checkbox":
            changes(control.send_keys, Keys.SPACE)
            changes(control.click)
            control.click()  # so that the presets have something to do
        elif tag == "svg":
            changes(control.send_keys, Keys.RIGHT)
        else:
            changes(control.click)
        names.append(name)
    return names


def press(driver, button, done):
    """Click, again while nothing comes of it: on a slow machine a page may still move under the pointer."""
    for _ in range(10):
        button.click()
        with contextlib.suppress(TimeoutException):
            return WebDriverWait(driver, 30, poll_frequency=0.2).until(lambda _: done())
    raise TimeoutException(f"{button.text!r} did nothing")


def train_live(driver, wait, root, seed):
    """Live training of a lineage that is not in the store, started, stopped, and gone on with.

    A browser that is slower than the training may miss it: then there is another seed.
    """
    [field], [start, stop] = all_of(root, "input"), all_of(root, "button")
    for own in range(seed, seed + 1000, 50):
        field.clear()
        field.send_keys(str(own))
        before = said(root)
        press(driver, start, lambda before=before: said(root) != before)
        wait.until(lambda _: re.search(r"Training\. \S+, epoch \d+ of|Finished", said(root)))
        press(driver, stop, lambda: re.search("Stopped; nothing is lost|Finished", said(root)))
        if "Stopped" in said(root):
            break
    assert start.text == "Go on" and len(all_of(root, "polyline")) >= 2
    name, epoch = re.search(r"(\S+), epoch (\d+)", said(root)).groups()
    press(driver, start, lambda: re.search(r"(Training|Finished)\. \S+, epoch \d+", said(root)))
    assert name not in said(root) or int(re.search(r"epoch (\d+)", said(root))[1]) >= int(epoch), "it went on"
    press(driver, stop, lambda: re.search("Stopped|Finished", said(root)))
