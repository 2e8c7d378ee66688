//! `aleph fn url`.

use super::{text, told};
use crate::client::Client;
use crate::output::say;
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// A URL of a function.
#[derive(Debug, clap::Args)]
pub(crate) struct Url {
    /// Name of the function, such as hello or hello:live
    name: String,
    /// Who may call it: whoever reaches the node's functions, or who signs with a key of the
    /// function's account; makes the URL where there is none
    #[arg(long, value_name = "KIND", value_parser = ["none", "iam"])]
    auth: Option<String>,
    /// Give answers as they are written, and not once they are whole
    #[arg(long, conflicts_with = "no_stream")]
    stream: bool,
    /// Give answers once they are whole
    #[arg(long)]
    no_stream: bool,
    /// Let pages of this origin (scheme, name and port) call it; * for all
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Let them use this method as well, such as POST or * [default: *]
    #[arg(long, value_name = "METHOD", requires = "cors_origin")]
    cors_method: Vec<String>,
    /// Let them send this header as well
    #[arg(long, value_name = "HEADER", requires = "cors_origin")]
    cors_header: Vec<String>,
    /// Remove the URL
    #[arg(long, conflicts_with_all = ["auth", "stream", "no_stream", "cors_origin"])]
    delete: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Url {
    /// What is said, in the node's words. Of `before`, what the URL says of pages so far, stays what
    /// is not said anew.
    fn said(&self, before: Option<&Value>) -> Value {
        let mut said = json!({});
        if let Some(auth) = &self.auth {
            said["AuthType"] = match auth.as_str() {
                "iam" => "AWS_IAM",
                _ => "NONE",
            }
            .into();
        }
        if self.stream {
            said["InvokeMode"] = "RESPONSE_STREAM".into();
        }
        if self.no_stream {
            said["InvokeMode"] = "BUFFERED".into();
        }
        if !self.cors_origin.is_empty() {
            let before = before.filter(|before| before.is_object()).cloned();
            let mut cors = before.unwrap_or_else(|| json!({ "AllowMethods": ["*"] }));
            for (name, all) in [
                ("AllowOrigins", &self.cors_origin),
                ("AllowMethods", &self.cors_method),
                ("AllowHeaders", &self.cors_header),
            ] {
                if !all.is_empty() {
                    cors[name] = json!(all);
                }
            }
            said["Cors"] = cors;
        }
        said
    }

    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let name = self.name.as_str();
        if self.delete {
            client.remove_function_url(name).await?;
            return told(&json!({ "name": name, "removed": true }), self.json, name);
        }
        let there = client.function_url(name).await?;
        let said = self.said(there.as_ref().map(|url| &url["Cors"]));
        let some = said.as_object().is_some_and(|all| !all.is_empty());
        let url = match there {
            Some(url) if !some => url,
            Some(_) => client.change_function_url(name, &said).await?,
            // Who may call it is nothing to be guessed.
            None => {
                ensure!(
                    self.auth.is_some(),
                    "{name} has no URL; make one with: aleph fn url {name} --auth none|iam"
                );
                client.create_function_url(name, &said).await?
            }
        };
        let address = text(&url, "FunctionUrl");
        // A URL of a node that has a listener has its port.
        if !address.trim_start_matches("http://").contains(':') {
            say("nobody can call it yet: set listen in [functions] of the node");
        }
        told(&url, self.json, address)
    }
}
