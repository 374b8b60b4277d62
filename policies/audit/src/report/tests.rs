use super::*;
use std::path::Path;

fn shipped() -> Set {
    Set::from_folder(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap()
}

fn options() -> Options {
    Options { made_by: "vmsup test".into(), date: None }
}

/// A set whose every text is an attack.
fn hostile() -> (Set, Vec<Finding>) {
    const EVIL: &str =
        "</style><script>alert(1)</script> | a\nb ` *x* [l](http://e) \u{202e}\u{1b}[m\" onload='x' &amp;";
    let mut set = shipped();
    set.origin = EVIL.into();
    set.filters.retain(|f| f.arch == Arch::X86_64);
    for filter in &mut set.filters {
        filter.name += EVIL;
        filter.file = EVIL.into();
        filter.accepted.insert(EVIL.into(), EVIL.into());
        for rule in &mut filter.rules {
            rule.comment = Some(EVIL.into());
            rule.unexercised = Some(EVIL.into());
            rule.accepted.insert(EVIL.into(), EVIL.into());
            rule.file = EVIL.into();
            rule.conditions.iter_mut().for_each(|c| c.comment = Some(EVIL.into()));
        }
    }
    for process in &mut set.unfiltered {
        process.reason = EVIL.into();
        process.name = EVIL.into();
    }
    for process in set.processes.values_mut() {
        process.comment = EVIL.into();
        process.capabilities.push(EVIL.into());
        process.fds.insert(9, EVIL.into());
    }
    for landlock in set.landlock.values_mut() {
        landlock.comment = EVIL.into();
    }
    set.nft.insert(EVIL.into(), format!("table {} {{\nchain <b> {{\n", EVIL.replace('\n', " ")));
    let finding = Finding {
        id: "an-id",
        severity: Severity::High,
        arch: None,
        filter: EVIL.into(),
        rule: Some(EVIL.into()),
        file: EVIL.into(),
        line: None,
        message: EVIL.into(),
        accepted: Some(EVIL.into()),
    };
    (set, vec![finding])
}

#[test]
fn what_a_set_says_is_text_in_html() {
    let (set, findings) = hostile();
    let page = html(&set, &findings, &Options { made_by: "<b>".into(), date: Some("<i>".into()) });
    assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("<i>"));
    assert_eq!(page.matches("</style>").count(), 1);
    assert!(!page.contains('\u{202e}') && !page.contains('\u{1b}'));
    assert!(!page.contains("\" onload="));
    assert!(page.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn what_a_set_says_is_text_in_markdown() {
    let (set, findings) = hostile();
    let page = markdown(&set, &findings, &options());
    assert!(
        !page.contains("<script")
            && !page.replace("\\]", "").contains("](http")
            && !page.contains("http://")
            && !page.contains(" *x*")
    );
    tables_are_whole(&page);
}

/// Every table has one count of cells in all of its rows.
fn tables_are_whole(page: &str) {
    let cells = |line: &str| line.replace("\\\\", "").replace("\\|", "").matches('|').count();
    let mut width = None;
    let mut tables = 0;
    for line in page.lines() {
        if !line.starts_with('|') {
            assert!(!line.contains(" | "), "a row outside of its table: {line}");
            width = None;
            continue;
        }
        tables += usize::from(width.is_none());
        assert_eq!(*width.get_or_insert(cells(line)), cells(line), "{line}");
    }
    assert!(tables > 10, "{tables}");
}

#[test]
fn the_same_set_gives_the_same_bytes_and_markdown_is_well_formed() {
    let (set, again) = (shipped(), shipped());
    assert_eq!(html(&set, &[], &options()), html(&again, &[], &options()));
    let page = markdown(&set, &[], &options());
    assert_eq!(page, markdown(&again, &[], &options()));
    tables_are_whole(&page);
}

#[test]
fn every_rule_place_and_finding_stands_in_both() {
    let set = shipped();
    let findings = crate::audit::audit(&set);
    let pages = [html(&set, &findings, &options()), markdown(&set, &findings, &options())];
    for (page, escape) in pages.iter().zip([true, false]) {
        for filter in &set.filters {
            assert!(page.contains(&words::shown(&filter.name)));
            for rule in &filter.rules {
                let place = words::place(&rule.file, Some(rule.line));
                let place = if escape { place.replace('/', "/<wbr>") } else { place };
                assert!(page.contains(&place), "{place}");
            }
        }
        for finding in &findings {
            assert!(page.contains(finding.id), "{}", finding.id);
        }
        let at_least = set.filters.iter().map(|f| f.rules.len()).sum::<usize>() + findings.len();
        let rows = if escape { page.matches("<tr").count() } else { page.matches("\n| ").count() };
        assert!(rows > at_least, "{rows} rows");
        assert!(page.contains("CAP_NET_ADMIN") && page.contains("asserted at start") && page.contains("vmsup.nft"));
    }
    for table in pages[0].split("<th").skip(1).filter(|t| !t.starts_with("ead")) {
        assert!(table.split('>').next().unwrap().contains("scope="), "{}", &table[..60]);
    }
}

#[test]
fn ids_are_unique_and_links_lead_somewhere() {
    let (hostile, findings) = hostile();
    for page in [html(&shipped(), &[], &options()), html(&hostile, &findings, &options())] {
        let attribute = |name: &str| -> Vec<String> {
            page.split(name).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
        };
        let ids = attribute(" id=\"");
        let unique: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        for link in attribute(" href=\"#") {
            assert!(unique.contains(&link), "{link}");
        }
    }
}

#[test]
fn a_foreign_set_has_a_report_and_no_tables_of_ours() {
    let text = r#"{"vmm": {"default_action": "trap", "filter_action": "allow", "filter": [{"syscall": "open"}]}}"#;
    let set = policy_set::foreign::read("theirs.json", Arch::X86_64, text).unwrap();
    let page = html(&set, &[], &options());
    assert!(page.contains("SIGSYS") && page.contains("no reason given") && !page.contains("id=\"rights\""));
    assert!(markdown(&set, &[], &options()).contains("no reason given"));
}
