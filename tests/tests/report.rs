//! The page that `vmsup policy report` writes, in a real browser without scripts: whole, quiet, legible in light and dark, on
//! a desktop, a phone and paper.
//!
//! `VMSUP_PICTURES=FOLDER cargo test -p vmsup-tests --test report` keeps what the browser shows, for people to look at.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use vmsup_tests::browser::{Browser, installed};
use vmsup_tests::{Scratch, program, skip, user::with_subuids};

/// Text whose contrast is below 4.5 (WCAG AA), in the page as it is shown now. Backgrounds are those of ancestors, laid over
/// each other; a hatched cell counts as each of its two colours. Text in a picture counts as the page's own.
const CONTRAST: &str = r#"(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return {r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1}; };
  const light = c => { const f = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(c.r) + 0.7152 * f(c.g) + 0.0722 * f(c.b); };
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a > 0) return c; }
    return {r: 255, g: 255, b: 255, a: 1}; };
  const bad = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || ['STYLE', 'title', 'desc'].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const ink = parse(e.closest('svg') ? style.fill : style.color);
    const a = light(ink), b = light(ground(e));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen++;
    if (contrast < 4.5) bad.push(`${contrast.toFixed(2)} ${e.tagName}.${e.className} ${walk.currentNode.data.slice(0, 40)}`);
  }
  return {seen, bad: bad.slice(0, 20)};
})()"#;

/// What is seen of the page's build.
const SHAPE: &str = r##"(() => {
  const all = s => [...document.querySelectorAll(s)];
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    headings: all('th').length, scopes: all('th[scope]').length,
    uncaptioned: all('table').filter(t => !t.caption).length,
    columns: all('.matrix thead th').map(t => t.textContent.trim()),
    rows: all('.matrix tbody tr:not(.family)').map(t => t.cells[0].textContent.trim()),
    uneven: all('.matrix tbody tr:not(.family)').filter(t => t.cells.length !== all('.matrix thead th').length).length,
    sticky: getComputedStyle(all('.matrix tbody tr:not(.family) th')[0]).position,
    cells: all('.matrix td.free, .matrix td.if').length,
    silent: all('.matrix td.free:not([title]), .matrix td.if:not([title])').length,
    lost: all('a[href^="#"]').filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length,
    scripts: document.scripts.length, lang: document.documentElement.lang, title: document.title,
    picture: all('figure svg').map(s => [s.querySelector('title').textContent, s.querySelector('desc').textContent]),
    tall: document.documentElement.scrollHeight,
  };
})()"##;

/// The page of the shipped set, in a folder that the browser's user can read.
fn page(folder: &Path) -> String {
    let output = Command::new(program("vmsup")).args(["policy", "report", "--arch", "x86_64"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = folder.join("report.html");
    std::fs::write(&path, output.stdout).unwrap();
    format!("file://{}", path.display())
}

/// Opens the page, as wide as that and in one of the two schemes.
fn open(browser: &mut Browser, url: &str, width: u32, scheme: &str) {
    let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
    browser.call("Emulation.setDeviceMetricsOverride", metrics);
    let feature = json!([{"name": "prefers-color-scheme", "value": scheme}]);
    browser.call("Emulation.setEmulatedMedia", json!({"media": "", "features": feature}));
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.events.clear();
    browser.call("Page.navigate", json!({"url": url}));
    browser.wait("Page.loadEventFired");
}

#[test]
fn the_report_is_whole_quiet_and_legible_in_a_browser() {
    const NAME: &str = "the_report_is_whole_quiet_and_legible_in_a_browser";
    let Some(chromium) = installed() else {
        return skip(NAME, "no Chromium is installed (make deps)");
    };
    let scratch = Scratch::new(&with_subuids());
    let url = page(scratch.path());
    let mut browser = Browser::start(&chromium, &scratch.path().join("profile"), &with_subuids());
    let filters = policies::ALL;
    let calls: BTreeSet<&str> = filters.iter().flat_map(|f| f.syscalls.iter().copied()).collect();
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        let what = format!("{width} px, {scheme}");
        open(&mut browser, &url, width, scheme);
        let shape = browser.evaluate(SHAPE);
        assert_eq!(shape["overflow"], 0, "{what}: the page scrolls sideways");
        assert_eq!(shape["headings"], shape["scopes"], "{what}: a th without scope");
        for none in ["uncaptioned", "uneven", "silent", "lost", "scripts"] {
            assert_eq!(shape[none], 0, "{what}: {none}");
        }
        assert_eq!((&shape["lang"], &shape["sticky"]), (&json!("en"), &json!("sticky")), "{what}");
        let list = |name: &str| shape[name].as_array().unwrap().clone();
        assert_eq!(list("columns").len(), filters.len() + 2, "{what}: {:?}", shape["columns"]);
        let rows: BTreeSet<String> = list("rows").iter().map(|r| r.as_str().unwrap().to_owned()).collect();
        assert_eq!((rows.len(), list("rows").len()), (calls.len(), calls.len()), "{what}: a row for each system call");
        assert!(calls.iter().all(|call| rows.contains(*call)), "{what}: {rows:?}");
        let cells: usize = filters.iter().map(|f| f.syscalls.len()).sum();
        assert_eq!(shape["cells"], cells, "{what}: a sign for each system call of each filter");
        assert!(shape["picture"][0][1].as_str().is_some_and(|d| d.contains("jailer")), "{what}: {}", shape["picture"]);
        let contrast = browser.evaluate(CONTRAST);
        assert!(contrast["seen"].as_u64().unwrap() > 1000, "{what}: {contrast}");
        assert_eq!(contrast["bad"], json!([]), "{what}: text that is hard to read");
        quiet(&browser.events, &url, &what);
        keep(&mut browser, &format!("{scheme}-{width}.png"), &shape);
    }
    printed(&mut browser, scratch.path());
}

/// Nothing but the file itself was asked for, and nobody complained.
fn quiet(events: &[Value], url: &str, what: &str) {
    let mut asked = 0;
    for event in events {
        let method = event["method"].as_str().unwrap_or_default();
        assert!(
            !matches!(method, "Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown"),
            "{what}: {event}"
        );
        if method == "Network.requestWillBeSent" {
            let wanted = event["params"]["request"]["url"].as_str().unwrap_or_default();
            assert!(wanted == url || wanted == "data:,", "{what}: {wanted}");
            asked += usize::from(wanted == url);
        }
    }
    assert_eq!(asked, 1, "{what}");
}

/// On paper: several pages, none of them blank, legible whatever the screen's scheme.
fn printed(browser: &mut Browser, folder: &Path) {
    let feature = json!([{"name": "prefers-color-scheme", "value": "dark"}]);
    browser.call("Emulation.setEmulatedMedia", json!({"media": "print", "features": feature}));
    let contrast = browser.evaluate(CONTRAST);
    assert_eq!(contrast["bad"], json!([]), "printed text that is hard to read");
    assert_eq!(browser.evaluate("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)");
    browser.call("Emulation.setEmulatedMedia", json!({"media": "", "features": feature}));
    let pdf =
        browser.call("Page.printToPDF", json!({"preferCSSPageSize": true, "paperWidth": 8.27, "paperHeight": 11.69}));
    let pdf = decoded(pdf["data"].as_str().unwrap());
    assert!(pdf.starts_with(b"%PDF-"));
    let path = folder.join("report.pdf");
    std::fs::write(&path, &pdf).unwrap();
    if let Some(pictures) = std::env::var_os("VMSUP_PICTURES") {
        std::fs::write(Path::new(&pictures).join("report.pdf"), &pdf).unwrap();
    }
    // Poppler shows what stands on a page; without it the count of pages has to do.
    let pages = pdf.windows(11).filter(|w| w == b"/Type /Page").count();
    assert!(pages > 3, "{pages} pages");
    match Command::new("pdftotext").arg("-layout").arg(&path).arg("-").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let pages: Vec<&str> = text.trim_end_matches('\u{c}').split('\u{c}').collect();
            assert!(pages[0].contains("What every process may do") && pages[0].contains("Summary"), "{}", pages[0]);
            assert!(pages.iter().all(|page| page.trim().len() > 40), "a blank page");
        }
        Err(e) => skip("pages_of_the_printed_report", &format!("pdftotext: {e} (make deps)")),
    }
}

/// The whole page as it looks, where someone wants to see it.
fn keep(browser: &mut Browser, name: &str, shape: &Value) {
    let Some(folder) = std::env::var_os("VMSUP_PICTURES") else { return };
    let width = browser.evaluate("innerWidth");
    let clip = json!({"x": 0, "y": 0, "width": width, "height": shape["tall"], "scale": 1});
    let shot = browser.call("Page.captureScreenshot", json!({"clip": clip, "captureBeyondViewport": true}));
    std::fs::write(Path::new(&folder).join(name), decoded(shot["data"].as_str().unwrap())).unwrap();
}

fn decoded(base64: &str) -> Vec<u8> {
    let mut child = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(base64.as_bytes()).unwrap());
        child.wait_with_output().unwrap().stdout
    })
}

#[test]
fn the_same_set_gives_the_same_bytes_and_other_sets_are_read() {
    let scratch = Scratch::new(&with_subuids());
    let run = |args: &[&str]| {
        let output = Command::new(program("vmsup")).args(["policy", "report"]).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let first = run(&["--arch", "all", "--format", "markdown"]);
    assert_eq!(first, run(&["--arch", "all", "--format", "markdown"]));
    assert!(first.0 == 0 && first.1.contains("`x86_64`, `aarch64`"), "{}", first.2);
    let path = scratch.path().join("report.html").display().to_string();
    let (status, out, err) = run(&["--output", &path, "--arch", "aarch64"]);
    assert_eq!((status, out.as_str(), err), (0, "", format!("vmsup: {path} is written\n")));
    assert!(std::fs::read_to_string(&path).unwrap().contains("aarch64-matrix-table"));
    let theirs = scratch.path().join("theirs.json").display().to_string();
    let filter = r#"{"vmm": {"default_action": "trap", "filter_action": "allow", "filter": [{"syscall": "read", "comment": "<script>"}]}}"#;
    std::fs::write(&theirs, filter).unwrap();
    let (status, out, _) = run(&["--foreign", &theirs, "--arch", "x86_64"]);
    assert!(status == 0 && out.contains("&lt;script&gt;") && !out.contains("<script"), "{out}");
    for (wrong, says) in [
        (["--foreign", &theirs, "--arch", "all"], "is for one architecture"),
        (["--foreign", "/nonexistent", "--arch", "x86_64"], "/nonexistent"),
        (["--arch", "riscv64", "--format", "html"], "all"),
    ] {
        let (status, out, err) = run(&wrong);
        assert!(status == 2 && out.is_empty() && err.contains(says), "{status}: {err}");
    }
}
