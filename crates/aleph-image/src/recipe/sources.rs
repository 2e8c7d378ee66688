//! Choosing, of the host's apt sources, those that make a Debian release.
//!
//! A mirror is never named here: an image is made from what the host itself uses.

/// The suites that one release is made of, and the component that Debian proper has.
const SUFFIXES: [&str; 3] = ["", "-updates", "-security"];
const COMPONENT: &str = "main";

/// The two forms of a source file, as apt tells them apart: by extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One source a line: `.list`.
    Lines,
    /// Paragraphs of fields: `.sources`.
    Paragraphs,
}

impl Form {
    pub(super) fn of(extension: &str) -> Option<Self> {
        match extension {
            "list" => Some(Self::Lines),
            "sources" => Some(Self::Paragraphs),
            _ => None,
        }
    }

    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Lines => "list",
            Self::Paragraphs => "sources",
        }
    }
}

/// The part of a source file that is about `release`; `None` if there is none.
pub(super) fn select(text: &str, form: Form, release: &str) -> Option<String> {
    let chosen: Vec<String> = match form {
        Form::Lines => text
            .lines()
            .filter_map(|line| select_line(line, release))
            .collect(),
        Form::Paragraphs => paragraphs(text)
            .iter()
            .filter_map(|paragraph| select_paragraph(paragraph, release))
            .collect(),
    };
    let separator = if form == Form::Lines { "\n" } else { "\n\n" };
    (!chosen.is_empty()).then(|| chosen.join(separator) + "\n")
}

fn is_of(suite: &str, release: &str) -> bool {
    suite
        .strip_prefix(release)
        .is_some_and(|suffix| SUFFIXES.contains(&suffix))
}

/// `deb [options] URI suite component...`
fn select_line(line: &str, release: &str) -> Option<String> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix(char::is_whitespace)?
        .trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().skip(1);
    let suite = words.next()?;
    (is_of(suite, release) && words.any(|word| word == COMPONENT)).then(|| line.to_owned())
}

/// Lines without comments, in groups that empty lines separate.
fn paragraphs(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter(|paragraph| !paragraph.is_empty())
        .map(<[&str]>::to_vec)
        .collect()
}

fn select_paragraph(lines: &[&str], release: &str) -> Option<String> {
    let field = |wanted: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let has = |key, wanted| field(key).is_some_and(|v| v.split_whitespace().any(|w| w == wanted));
    let enabled = !field("Enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
    if !enabled || !has("Types", "deb") || !has("Components", COMPONENT) {
        return None;
    }
    let suites: Vec<&str> = field("Suites")?
        .split_whitespace()
        .filter(|suite| is_of(suite, release))
        .collect();
    if suites.is_empty() {
        return None;
    }
    let kept: Vec<String> = lines
        .iter()
        .map(|line| match line.split_once(':') {
            Some((key, _)) if key.eq_ignore_ascii_case("Suites") => {
                format!("Suites: {}", suites.join(" "))
            }
            Some((key, _)) if key.eq_ignore_ascii_case("Types") => "Types: deb".into(),
            _ => (*line).to_owned(),
        })
        .collect();
    Some(kept.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_of_the_release_are_kept_and_narrowed() {
        let text = "\
# a comment
Types: deb deb-src
URIs: http://mirror.invalid/debian
# an older one
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://other.invalid
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.invalid
Suites: bookworm
Components: main

Types: deb
URIs: http://vendor.invalid
Suites: bookworm
Components: stable
";
        assert_eq!(
            select(text, Form::Paragraphs, "bookworm").unwrap(),
            "Types: deb\n\
             URIs: http://mirror.invalid/debian\n\
             Suites: bookworm bookworm-updates\n\
             Components: main contrib\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }

    #[test]
    fn lines_of_the_release_are_kept() {
        let text = "\
deb http://mirror.invalid/debian bookworm main
deb [signed-by=/a/b arch=amd64] http://mirror.invalid/s bookworm-security main # why
deb-src http://mirror.invalid/debian bookworm main
# deb http://mirror.invalid/debian bookworm main
deb http://vendor.invalid cloud-bookworm main
deb http://vendor.invalid bookworm stable
";
        assert_eq!(
            select(text, Form::Lines, "bookworm").unwrap(),
            "deb http://mirror.invalid/debian bookworm main\n\
             deb [signed-by=/a/b arch=amd64] http://mirror.invalid/s bookworm-security main\n"
        );
    }

    #[test]
    fn sources_of_another_release_are_none() {
        assert_eq!(
            select(
                "deb http://m.invalid trixie main\n",
                Form::Lines,
                "bookworm"
            ),
            None
        );
        assert_eq!(select("", Form::Paragraphs, "bookworm"), None);
    }
}
