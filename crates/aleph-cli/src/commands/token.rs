//! `aleph token`.

use super::each::each;
use crate::client::NewToken;
use crate::context::Context;
use crate::duration::{duration, whole_seconds};
use crate::output::{Column, Listing, ago, plain, print, print_json, print_json_line, say, span};
use aleph_types::Timestamp;
use anyhow::Result;
use serde_json::json;
use std::time::Duration;

/// What to do with tokens. Only operators may.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Token {
    /// Make a token, and print it this once
    Create {
        /// The account that it speaks for
        // Not `account`: that is the flag before all commands.
        #[arg(value_name = "ACCOUNT")]
        owner: String,
        /// What it is for, in your words
        #[arg(short, long, default_value = "")]
        label: String,
        /// End it after this time, such as 30d [default: when it is revoked]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires: Option<Duration>,
        /// Print the token with its secret as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List tokens, without their secrets
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke tokens
    Rm {
        /// Ids of tokens
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Print a line of JSON for each token
        #[arg(long)]
        json: bool,
    },
}

impl Token {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        match self {
            Self::Create {
                owner,
                label,
                expires,
                json,
            } => {
                let wanted = NewToken {
                    account: owner,
                    label,
                    expires_in_seconds: expires.map(whole_seconds),
                };
                let token = client.create_token(&wanted).await?;
                if json {
                    print_json_line(&token)?;
                } else {
                    // The secret alone is on standard output, so that it can be kept by a pipe.
                    say(&format!("aleph: token {} is shown only now", token.id));
                    print(token.token.unwrap_or_default())?;
                }
            }
            Self::Ls { json } => {
                let tokens = client.tokens().await?;
                if json {
                    print_json(&tokens)?;
                } else {
                    print(listing(&tokens, Timestamp::now()))?;
                }
            }
            Self::Rm { ids, json } => {
                let revoke = async |id: &str| {
                    client.remove_token(id).await?;
                    Ok(json!({ "id": id, "removed": true }))
                };
                return each(&ids, json, revoke).await;
            }
        }
        Ok(0)
    }
}

fn listing(tokens: &[crate::client::Token], now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ID"),
        Column::Text("ACCOUNT"),
        Column::Text("LABEL"),
        Column::Text("CREATED"),
        Column::Text("EXPIRES"),
    ]);
    for token in tokens {
        let expires = token.expires_at.map_or("never".into(), |then| {
            match then.as_second() - now.as_second() {
                ..=0 => "expired".into(),
                left => format!("in {}", span(left)),
            }
        });
        listing.row([
            token.id.clone(),
            token.account.clone(),
            plain(&token.label),
            token
                .created_at
                .map(|then| ago(then, now))
                .unwrap_or_default(),
            expires,
        ]);
    }
    listing
}
