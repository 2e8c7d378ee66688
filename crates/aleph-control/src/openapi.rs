//! The OpenAPI document, made from the code of the routes.
//!
//! It is committed as `openapi.json` beside this crate's manifest, so that a change of the API
//! is seen in review. A test compares the two; `UPDATE_OPENAPI=1 cargo test -p aleph-control
//! openapi` accepts what the code says.

use crate::routes;
use aleph_types::Problem;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, Info, License, OpenApi, OpenApiBuilder, Ref, RefOr, Response,
};
use utoipa::{PartialSchema, ToSchema};

/// What every route that needs a known caller can answer besides.
const PROBLEMS: [(&str, &str); 10] = [
    ("400", "The request is wrong: mend it."),
    ("401", "There is no token, or it is not valid."),
    ("403", "Who asks may not do this."),
    ("404", "What it names is not there."),
    (
        "408",
        "The request, or what it waits for, did not come in time.",
    ),
    ("409", "It does not go together with the present state."),
    ("413", "The body is too long."),
    ("415", "The body has a form that is not read here."),
    (
        "429",
        "The node has too little of something. `Retry-After` says when to ask again.",
    ),
    (
        "503",
        "Something that the node needs does not answer, or the node is about to stop.",
    ),
];

/// The document.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = base();
    let (_, guarded) = routes::guarded().split_for_parts();
    let (_, open) = routes::open().split_for_parts();
    document.merge(guarded);
    document.merge(open);
    complete(document)
}

/// The document as text, which ends with a line break.
pub(crate) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        // Maps with texts for keys are all that there is in it.
        let mut text = document().to_pretty_json().unwrap_or_default();
        text.push('\n');
        text
    });
    &TEXT
}

fn base() -> OpenApi {
    let mut info = Info::new("Aleph Compute node", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Runs jobs in microVMs. On the node's Unix socket, root and the group `aleph` are \
         operators; on TCP a bearer token speaks for an account, which sees and touches only its \
         own jobs. Every error is a `Problem`."
            .into(),
    );
    info.license = Some(License::new("Apache-2.0"));
    let components = ComponentsBuilder::new()
        .schema(Problem::name(), Problem::schema())
        .schemas_from_iter(problem_schemas())
        .security_scheme(
            "token",
            SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
        )
        .build();
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>(
            "token",
            [],
        )]))
        .build()
}

fn problem_schemas() -> Vec<(String, RefOr<utoipa::openapi::Schema>)> {
    let mut schemas = Vec::new();
    Problem::schemas(&mut schemas);
    schemas
}

/// Adds what all routes have in common.
fn complete(mut document: OpenApi) -> OpenApi {
    let paths = std::mem::take(&mut document.paths.paths);
    for (path, mut item) in paths {
        let open = ["/healthz", "/readyz", "/openapi.json"].contains(&path.as_str());
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.head,
        ];
        for operation in operations.into_iter().flatten() {
            if !open {
                add_problems(operation);
            }
        }
        // The router marks what may hold slashes, OpenAPI has no word for it.
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    document
}

fn add_problems(operation: &mut Operation) {
    let responses: &mut BTreeMap<String, RefOr<Response>> = &mut operation.responses.responses;
    for (status, description) in PROBLEMS {
        responses
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(problem(description)));
    }
}

fn problem(description: &str) -> Response {
    let schema = Ref::from_schema_name(Problem::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new()
        .description(description)
        .content("application/json", content)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_committed_openapi_document_is_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, text()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        let first = committed
            .lines()
            .zip(text().lines())
            .enumerate()
            .find(|(_, (a, b))| a != b);
        assert!(
            committed == text(),
            "openapi.json is not what the code says, beginning at {first:?}: review the change, \
             and accept it with UPDATE_OPENAPI=1 cargo test -p aleph-control openapi"
        );
    }

    #[test]
    fn every_operation_says_what_it_is_and_how_it_fails() {
        let document = serde_json::to_value(document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() > 20);
        for (path, item) in paths {
            for (method, operation) in item.as_object().unwrap() {
                let what = format!("{method} {path}");
                assert!(operation["summary"].is_string(), "{what}");
                assert!(operation["tags"][0].is_string(), "{what}");
                let responses = operation["responses"].as_object().unwrap();
                if path.starts_with("/v1") {
                    for (status, _) in PROBLEMS {
                        assert!(responses.contains_key(status), "{what} {status}");
                    }
                }
            }
        }
    }
}
