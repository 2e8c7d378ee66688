//! `aleph fn alias`.

use super::tables::alias_listing;
use super::{text, told};
use crate::client::Client;
use crate::output::{Advised, print, print_json};
use anyhow::Result;
use serde_json::{Value, json};

/// A name of a version.
#[derive(Debug, clap::Args)]
pub(crate) struct Alias {
    /// Name of the function
    name: String,
    /// The alias
    alias: Option<String>,
    /// The version that it leads to
    // Not `version`: that is every command's flag.
    #[arg(value_name = "VERSION")]
    to: Option<String>,
    /// Lead a part of invocations to another version, such as 2=0.1
    #[arg(long, value_name = "VERSION=PART", value_parser = weight, requires = "to")]
    weight: Option<(String, f64)>,
    /// Remove the alias
    #[arg(long, requires = "alias", conflicts_with = "to")]
    rm: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn weight(text: &str) -> Result<(String, f64), String> {
    let wrong = || format!("{text:?} is no part of a version: write 2=0.1");
    let (version, part) = text.split_once('=').ok_or_else(wrong)?;
    let part: f64 = part.parse().map_err(|_| wrong())?;
    if (0.0..=1.0).contains(&part) {
        Ok((version.to_owned(), part))
    } else {
        Err(wrong())
    }
}

impl Alias {
    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let (name, json) = (self.name.as_str(), self.json);
        let Some(alias) = self.alias.as_deref() else {
            let aliases = client.function_aliases(name).await?;
            return match json {
                true => print_json(&aliases),
                false => print(alias_listing(&aliases)),
            };
        };
        if self.rm {
            client.remove_function_alias(name, alias).await?;
            return told(&json!({ "name": alias, "removed": true }), json, alias);
        }
        let Some(version) = self.to else {
            let aliases = client.function_aliases(name).await?;
            let found = aliases.iter().find(|one| text(one, "Name") == alias);
            let found = found.ok_or_else(|| Advised {
                what: format!("{name} has no alias {alias:?}"),
                advice: format!("Make it with: aleph fn alias {name} {alias} VERSION"),
            })?;
            return told(found, json, text(found, "FunctionVersion"));
        };
        let weights: Value = match self.weight {
            Some((other, part)) => json!({ other: part }),
            None => json!({}),
        };
        let wanted = json!({
            "FunctionVersion": version,
            "RoutingConfig": { "AdditionalVersionWeights": weights },
        });
        let set = client.set_function_alias(name, alias, &wanted).await?;
        told(&set, json, alias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_parts_of_one() {
        assert_eq!(weight("2=0.25"), Ok(("2".into(), 0.25)));
        for wrong in ["2", "2=x", "2=1.5", "2=-0.1"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }
}
