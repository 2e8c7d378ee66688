//! A job's specification in a file.

use crate::output::Advised;
use aleph_types::JobSpec;
use anyhow::{Context, Result};
use std::io::Read;
use std::path::Path;

/// Reads a specification: JSON or TOML where the name ends so, else YAML, of which JSON is a
/// part. `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<JobSpec> {
    let shown = path.display();
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    }
    let kind = path.extension().and_then(|kind| kind.to_str());
    parse(&text, kind).map_err(|why| {
        Advised {
            what: format!("{shown} is no job: {}", why.trim_end()),
            advice: "Only image is needed; all fields are in docs/user.md.".into(),
        }
        .into()
    })
}

fn parse(text: &str, kind: Option<&str>) -> Result<JobSpec, String> {
    match kind {
        Some("json") => serde_json::from_str(text).map_err(|error| error.to_string()),
        Some("toml") => toml::from_str(text).map_err(|error| error.to_string()),
        _ => serde_saphyr::from_str(text).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_in_three_languages() {
        let json = r#"{"image":"debian:12","command":["sleep","9"],"env":{"A":"1"},
            "resources":{"cpus":2,"memory":"256m"},
            "gpus":{"gpuType":"h200","gpuVramMiB":81920},"restart":{"policy":"on-failure"},
            "files":[{"path":"/etc/x","text":"y\n","mode":"0600"}]}"#;
        let toml = "image = 'debian:12'\ncommand = ['sleep', '9']\nenv.A = '1'\n\
            resources = { cpus = 2, memory = '256m' }\n\
            gpus = { gpuType = 'h200', gpuVramMiB = '80g', count = 1 }\nrestart.policy = 'on-failure'\n\
            [[files]]\npath = '/etc/x'\ntext = \"y\\n\"\nmode = '0600'\n";
        let yaml = "image: debian:12\ncommand: [sleep, \"9\"]\nenv: {A: \"1\"}\n\
            resources:\n  cpus: 2\n  memory: 256m\n\
            gpus: {gpuType: h200, gpuVramMiB: 81920}\nrestart: {policy: on-failure}\n\
            files:\n- path: /etc/x\n  text: |\n    y\n  mode: \"0600\"\n";
        let from_json = parse(json, Some("json")).unwrap();
        assert_eq!(parse(toml, Some("toml")).unwrap(), from_json);
        assert_eq!(parse(yaml, Some("yaml")).unwrap(), from_json);
        assert_eq!(parse(json, None).unwrap(), from_json, "YAML has JSON in it");
    }

    #[test]
    fn jobs_in_the_manual_are_jobs() {
        let manual = include_str!("../../../../docs/user.md");
        let blocks = manual.split("```yaml\n").skip(1);
        let blocks = blocks.filter_map(|rest| Some(rest.split_once("```")?.0));
        let jobs: Vec<_> = blocks
            .map(|text| {
                let job = parse(text, Some("yaml")).unwrap();
                assert_eq!(job.validate(), Ok(()), "{text}");
                job
            })
            .collect();
        let has_machine = |job: &&JobSpec| job.machine.is_some() && job.has_own_disk();
        assert_eq!(jobs.len(), 2);
        assert_eq!(jobs.iter().filter(has_machine).count(), 1);
    }

    #[test]
    fn a_misspelt_field_is_named() {
        for (text, kind) in [
            (r#"{"image":"x","comand":[]}"#, "json"),
            ("image = 'x'\ncomand = []", "toml"),
            ("image: x\ncomand: []", "yaml"),
        ] {
            let why = parse(text, Some(kind)).unwrap_err();
            assert!(why.contains("comand"), "{kind}: {why}");
        }
    }
}
