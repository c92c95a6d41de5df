//! What the status page shows, as a person would read it, and what would be wrong with it.

use serde_json::Value;

/// An expression whose value is all that the page shows; null while there is no page yet.
pub(super) const SHOWN: &str = r##"(() => {
  if (!document.body) return null;
  const texts = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent);
  const charts = {}, tiles = {}, lists = {};
  for (const card of document.querySelectorAll("#charts .card")) {
    const paths = [...card.querySelectorAll("path")].map((path) => path.getAttribute("d"));
    const lines = [...card.querySelectorAll(".legend i")].map((one) => one.textContent);
    charts[card.querySelector("h2").textContent] = { lines, paths };
  }
  for (const tile of document.querySelectorAll("#tiles .tile")) {
    tiles[tile.querySelector("span").textContent] = tile.querySelector("b").textContent;
  }
  for (const id of ["refusals", "drops", "certificates", "upstreams"]) {
    lists[id] = [...document.querySelectorAll("#" + id + " tbody tr")]
      .map((row) => [...row.cells].map((cell) => cell.textContent));
  }
  const cut = [...document.querySelectorAll("body *")].filter((one) => {
    const place = one.getBoundingClientRect();
    return place.width > 0 && (place.right > innerWidth + 1 || place.left < -1);
  }).map((one) => one.tagName + " " + one.textContent.slice(0, 40));
  return {
    title: document.title, state: texts("#state")[0], about: texts("#about")[0],
    is_stale: document.body.classList.contains("stale"),
    charts, tiles, lists, cut,
    ground: getComputedStyle(document.body).backgroundColor,
  };
})()"##;

/// Charts whose lines are not level while a flood, clients and refused ones come.
const LIVELY: [(&str, &[&str]); 3] = [
    ("Packets a second", &["passed", "dropped"]),
    ("Requests a second", &["answered", "refused"]),
    ("Handshakes a second", &["done"]),
];

/// What does not show any life yet, by name; empty when everything does.
pub(super) fn lifeless(shown: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let state = shown["state"].as_str().unwrap_or_default();
    if !state.starts_with("ready") || shown["is_stale"] != false {
        found.push(format!("state: {state}"));
    }
    for (chart, lines) in LIVELY {
        for line in lines {
            if figure(shown, chart, line).is_none_or(|figure| matches!(figure, "0" | "–")) {
                found.push(format!("{chart}: {line}"));
            }
        }
    }
    for list in ["refusals", "drops", "certificates", "upstreams"] {
        if shown["lists"][list].as_array().is_none_or(Vec::is_empty) {
            found.push(format!("list of {list}"));
        }
    }
    found
}

/// The figure beside the name of a chart's line.
pub(super) fn figure<'a>(shown: &'a Value, chart: &str, line: &str) -> Option<&'a str> {
    let lines = shown["charts"][chart]["lines"].as_array()?;
    lines
        .iter()
        .filter_map(Value::as_str)
        .find_map(|text| text.strip_prefix(line)?.strip_prefix(' '))
}

/// What stands still between two looks, by name; empty when everything moved that has to.
pub(super) fn still(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (chart, lines) in LIVELY {
        for (index, line) in lines.iter().enumerate() {
            let path = |shown: &Value| shown["charts"][chart]["paths"][index].clone();
            if path(before) == path(after) {
                found.push(format!("{chart}: {line}"));
            }
        }
    }
    for list in ["refusals", "drops"] {
        if before["lists"][list] == after["lists"][list] {
            found.push(format!("list of {list}"));
        }
    }
    if before["about"] == after["about"] {
        found.push("the time since the start".to_owned());
    }
    found
}

/// What a browser tells of a page that should not be: exceptions, lines of the console, requests to
/// anybody but `origin`, requests that failed.
pub(super) fn troubles(events: &[Value], origin: &str) -> Vec<String> {
    events.iter().filter_map(|event| trouble(event, origin)).collect()
}

fn trouble(event: &Value, origin: &str) -> Option<String> {
    let what = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(format!("exception: {}", what["exceptionDetails"])),
        // The page has nothing to say there.
        "Runtime.consoleAPICalled" => Some(format!("console: {}", what["args"])),
        "Log.entryAdded" => Some(format!("log: {}", what["entry"])),
        "Network.requestWillBeSent" => {
            let address = what["request"]["url"].as_str().unwrap_or_default();
            let is_ours = address.strip_prefix(origin).is_some_and(|rest| rest.starts_with('/'));
            (!is_ours && !address.starts_with("data:"))
                .then(|| format!("request to elsewhere: {address}"))
        }
        "Network.responseReceived" => {
            let answer = &what["response"];
            (answer["status"].as_u64() >= Some(400))
                .then(|| format!("{} answered with {}", answer["url"], answer["status"]))
        }
        // A page that is left gives up what it asked for.
        "Network.loadingFailed" if what["canceled"] != true => {
            Some(format!("a request failed: {}", what["errorText"]))
        }
        _ => None,
    }
}

/// Requests that a page made, by path.
pub(super) fn requests(events: &[Value], origin: &str) -> usize {
    let is_request = |event: &&Value| {
        event["method"] == "Network.requestWillBeSent"
            && event["params"]["request"]["url"].as_str().is_some_and(|url| url.starts_with(origin))
    };
    events.iter().filter(is_request).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ORIGIN: &str = "http://127.0.0.1:9090";

    #[test]
    fn what_a_good_page_never_does_is_told() {
        let event = |method: &str, params: Value| json!({ "method": method, "params": params });
        let request =
            |url: &str| event("Network.requestWillBeSent", json!({"request": {"url": url}}));
        let answer = |status: u16| {
            event("Network.responseReceived", json!({"response": {"url": "x", "status": status}}))
        };
        for (event, is_trouble) in [
            (request("http://127.0.0.1:9090/status.json"), false),
            (request("data:,"), false),
            (request("http://127.0.0.1:9090.evil.example/"), true),
            (request("http://127.0.0.1:9091/"), true),
            (request("https://cdn.example/lib.js"), true),
            (answer(200), false),
            (answer(304), false),
            (answer(404), true),
            (event("Network.loadingFailed", json!({"canceled": true})), false),
            (event("Network.loadingFailed", json!({"errorText": "net::ERR_FAILED"})), true),
            (event("Runtime.exceptionThrown", json!({})), true),
            (event("Runtime.consoleAPICalled", json!({"type": "log"})), true),
            (event("Log.entryAdded", json!({"entry": {"level": "error"}})), true),
            (event("Page.frameNavigated", json!({})), false),
        ] {
            let found = troubles(std::slice::from_ref(&event), ORIGIN);
            assert_eq!(!found.is_empty(), is_trouble, "{event}");
        }
    }

    fn shown(dropped: &str, path: &str, refused: u64) -> Value {
        let chart = |names: [&str; 2]| {
            json!({
                "lines": [format!("{} 7", names[0]), format!("{} {dropped}", names[1])],
                "paths": [path, path],
            })
        };
        json!({
            "state": "ready",
            "is_stale": false,
            "about": path,
            "charts": {
                "Packets a second": chart(["passed", "dropped"]),
                "Requests a second": chart(["answered", "refused"]),
                "Handshakes a second": chart(["done", "failed"]),
            },
            "lists": {
                "refusals": [["no_route", "1", refused.to_string()]],
                "drops": [["over_limit", "1", refused.to_string()]],
                "certificates": [["edge"]],
                "upstreams": [["orders"]],
            },
        })
    }

    #[test]
    fn life_is_figures_that_are_there_and_move() {
        let good = shown("1.2 M", "M1 2", 3);
        assert_eq!(lifeless(&good), [""; 0]);
        assert_eq!(figure(&good, "Packets a second", "dropped"), Some("1.2 M"));
        let silent = shown("–", "M1 2", 3);
        assert_eq!(lifeless(&silent), ["Packets a second: dropped", "Requests a second: refused"]);
        assert_eq!(lifeless(&Value::Null).len(), 10);
        assert_eq!(still(&good, &shown("1.3 M", "M1 3", 4)), [""; 0]);
        assert_eq!(still(&good, &good).len(), 8);
        let lists_only = still(&good, &shown("1.2 M", "M1 2", 4));
        assert_eq!(lists_only.len(), 6, "{lists_only:?}");
    }
}
