//! The API for programs: an OpenAPI 3.1 document, assembled from the table of routes and the types
//! of [`crate::api`], and served at `GET /api/v1/openapi.json`.
//!
//! Nothing is described here by hand but what a type cannot say: the words at the top, what stands
//! in a path, and which codes every route of a kind can refuse with. It is public: it says nothing
//! about this gateway but its version.

pub(super) mod inputs;
mod words;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::extract::OriginalUri;
use axum::http::Method;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use self::inputs::{BodyKind, Writer};
use super::gate;
use super::table::{Route, table};
use crate::api::events::{EventData, Output, Reset};
use crate::api::follow::Gap;
use crate::api::problem::{Code, Problem};
use crate::api::{PREFIX, REQUEST_ID_HEADER};
use crate::principal::Action;

/// The name of the one security scheme.
const SCHEME: &str = "token";

/// The document of a gateway that is served at the root of its host.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| document(&table()));

/// `GET openapi.json`
pub(super) async fn show(OriginalUri(uri): OriginalUri) -> axum::Json<Value> {
    let mut document = DOCUMENT.clone();
    let own_path = format!("{PREFIX}/openapi.json");
    // An embedder may have put all of this below a path of its own.
    match uri.path().strip_suffix(&own_path) {
        None | Some("") => {}
        Some(prefix) => document["servers"] = json!([{ "url": prefix }]),
    }
    axum::Json(document)
}

/// One way in which a route answers when all is well.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    words: &'static str,
    body: AnswerBody,
    pub(super) headers: Vec<(&'static str, &'static str)>,
}

#[derive(Debug)]
enum AnswerBody {
    Empty,
    Json(Writer),
    Media(&'static str),
}

impl Answer {
    /// JSON of this type.
    pub(super) fn json<T: JsonSchema>(status: u16, words: &'static str) -> Self {
        let writer = SchemaGenerator::subschema_for::<T>;
        Self::new(status, words, AnswerBody::Json(writer))
    }

    /// A body that JSON does not describe.
    pub(super) fn media(status: u16, media: &'static str, words: &'static str) -> Self {
        Self::new(status, words, AnswerBody::Media(media))
    }

    /// No body.
    pub(super) fn empty(status: u16, words: &'static str) -> Self {
        Self::new(status, words, AnswerBody::Empty)
    }

    fn new(status: u16, words: &'static str, body: AnswerBody) -> Self {
        Self {
            status,
            words,
            body,
            headers: Vec::new(),
        }
    }
}

/// Assembles the document.
fn document(routes: &[Route]) -> Value {
    let mut desk = Desk::new();
    let mut paths = Map::new();
    for route in routes {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = desk.operation(route);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Moltis gateway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": words::ABOUT,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": desk.schemas(),
            "responses": desk.refusals,
            "securitySchemes": {
                SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": words::SECURITY,
                },
            },
        },
    });
    words::for_json(&mut document);
    document
}

/// Where a document is written: what several operations share is gathered here.
struct Desk {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
    refusals: BTreeMap<String, Value>,
}

impl Desk {
    fn new() -> Self {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        let mut answers = settings.clone().for_serialize().into_generator();
        // Frames and events carry these, of which the document speaks in words only.
        answers.subschema_for::<Gap>();
        answers.subschema_for::<EventData>();
        answers.subschema_for::<Output>();
        answers.subschema_for::<Reset>();
        Self {
            requests: settings.for_deserialize().into_generator(),
            answers,
            refusals: BTreeMap::new(),
        }
    }

    /// All schemas by their names. A type that is read and written is the same in both directions.
    fn schemas(&mut self) -> Map<String, Value> {
        let mut schemas = self.answers.take_definitions(true);
        schemas.append(&mut self.requests.take_definitions(true));
        schemas
    }

    fn operation(&mut self, route: &Route) -> Value {
        let promise = &route.promise;
        let mut operation = json!({
            "operationId": promise.id,
            "summary": promise.summary,
            "tags": [tag(route.path)],
            "responses": self.responses(route),
            "security": [],
        });
        let any_of = route.action.scopes();
        if !any_of.is_empty() {
            let security = any_of.iter().map(|scope| json!({ SCHEME: [scope] }));
            operation["security"] = security.collect();
            operation["description"] = words::needs(any_of).into();
        }
        let parameters = self.parameters(route);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = promise.inputs.body {
            operation["requestBody"] = self.body(body);
        }
        operation
    }

    fn parameters(&mut self, route: &Route) -> Vec<Value> {
        let mut parameters = Vec::new();
        if route.path.contains("{id}") {
            parameters.push(json!({
                "name": "id",
                "in": "path",
                "required": true,
                "description": words::id_in(&route.method, route.path),
                "schema": { "type": "string", "minLength": 1 },
            }));
        }
        for header in &route.promise.headers {
            let mut parameter = json!({
                "name": header.name,
                "in": "header",
                "description": header.words,
                "schema": { "type": "string" },
            });
            if let Some(pattern) = header.pattern {
                parameter["schema"]["pattern"] = pattern.into();
            }
            parameters.push(parameter);
        }
        if let Some(query) = route.promise.inputs.query {
            parameters.extend(self.query(query));
        }
        parameters
    }

    /// Returns the fields of a query type as parameters.
    fn query(&mut self, query: Writer) -> Vec<Value> {
        let object = query(&mut self.requests).to_value();
        let required = required(&object);
        let fields = object["properties"].as_object().into_iter().flatten();
        let parameter = |(name, schema): (&String, &Value)| {
            let mut schema = without_null(schema.clone());
            let description = schema
                .as_object_mut()
                .and_then(|schema| schema.remove("description"));
            json!({
                "name": name,
                "in": "query",
                "required": required.contains(name),
                "description": description,
                "schema": schema,
            })
        };
        fields.map(parameter).collect()
    }

    fn body(&mut self, body: BodyKind) -> Value {
        match body {
            BodyKind::Raw => json!({
                "required": false,
                "content": { "application/octet-stream": {} },
            }),
            BodyKind::Json { object, reference } => {
                let object = object(&mut self.requests).to_value();
                json!({
                    // No body at all reads as `{}`.
                    "required": !required(&object).is_empty(),
                    "content": {
                        "application/json": { "schema": reference(&mut self.requests) },
                    },
                })
            }
        }
    }

    fn responses(&mut self, route: &Route) -> Map<String, Value> {
        let mut responses = Map::new();
        for answer in &route.promise.answers {
            let key = answer.status.to_string();
            let response = responses
                .entry(key)
                .or_insert_with(|| json!({ "description": "" }));
            self.add(answer, response);
        }
        let mut refusals = BTreeMap::<u16, Vec<Code>>::new();
        for code in Code::ALL.iter().filter(|code| may_refuse(route, **code)) {
            refusals.entry(code.status()).or_default().push(*code);
        }
        for (status, codes) in refusals {
            let refusal = self.refusal(status, &codes);
            // `/readyz` answers 503 when all is not well, and that is its answer.
            responses.entry(status.to_string()).or_insert(refusal);
        }
        responses
    }

    /// Adds one answer to the response that it shares its status with.
    fn add(&mut self, answer: &Answer, response: &mut Value) {
        let before = response["description"].as_str().unwrap_or_default();
        response["description"] = if before.is_empty() {
            answer.words.into()
        } else {
            format!("{before}\n\n{}", answer.words).into()
        };
        for (name, words) in &answer.headers {
            response["headers"][name] = json!({
                "description": words,
                "schema": { "type": "string" },
            });
        }
        match answer.body {
            AnswerBody::Empty => {}
            AnswerBody::Media(media) => response["content"][media] = json!({}),
            AnswerBody::Json(writer) => {
                let schema = writer(&mut self.answers).to_value();
                let place = &mut response["content"]["application/json"]["schema"];
                *place = match place.take() {
                    Value::Null => schema,
                    Value::Object(mut several) if several.contains_key("anyOf") => {
                        if let Some(all) = several["anyOf"].as_array_mut() {
                            all.push(schema);
                        }
                        several.into()
                    }
                    first => json!({ "anyOf": [first, schema] }),
                };
            }
        }
    }

    /// Returns a reference to the response for these codes, which have one status.
    fn refusal(&mut self, status: u16, codes: &[Code]) -> Value {
        let words: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
        let name = words.join(".");
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        if self.refusals.contains_key(&name) {
            return reference;
        }
        let line = |code: &Code| format!("`{code}`: {}.", code.title());
        let lines: Vec<String> = codes.iter().map(line).collect();
        let mut refusal = json!({
            "description": lines.join("\n\n"),
            "headers": { REQUEST_ID_HEADER: words::request_id() },
            "content": { "application/problem+json": { "schema": {
                "allOf": [
                    self.answers.subschema_for::<Problem>(),
                    { "properties": {
                        "code": { "enum": words },
                        "status": { "const": status },
                    } },
                ],
            } } },
        });
        if let Some((name, header)) = words::header_of(status) {
            refusal["headers"][name] = header;
        }
        self.refusals.insert(name, refusal);
        reference
    }
}

/// Returns whether a route may refuse with a code: every route of its kind does, or its row says so.
fn may_refuse(route: &Route, code: Code) -> bool {
    let changes = route.method != Method::GET;
    match code {
        Code::BadRequest | Code::TlsRequired | Code::WrongHost => !gate::is_open(route.path),
        Code::Internal => true,
        Code::Unauthenticated | Code::ScopeMissing | Code::ShuttingDown => {
            route.action != Action::Public
        }
        Code::TooMany if route.action != Action::Public => true,
        Code::Csrf | Code::StoreReadOnly => changes,
        Code::TooLarge | Code::UnsupportedMediaType if route.promise.inputs.body.is_some() => true,
        Code::Invalid if route.promise.inputs.is_checked() => true,
        own => route.promise.codes.contains(&own),
    }
}

fn required(object: &Value) -> Vec<String> {
    let names = object["required"].as_array().into_iter().flatten();
    names
        .filter_map(|name| name.as_str().map(ToOwned::to_owned))
        .collect()
}

/// A parameter that may be left out is not therefore null: a query has no such word.
fn without_null(mut schema: Value) -> Value {
    let Some(fields) = schema.as_object_mut() else {
        return schema;
    };
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            fields.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(mut several)) = fields.remove("anyOf") {
        several.retain(|one| one["type"] != "null");
        match several.pop() {
            Some(Value::Object(one)) if several.is_empty() => fields.extend(one),
            last => {
                several.extend(last);
                fields.insert("anyOf".to_owned(), several.into());
            }
        }
    }
    schema
}

/// Returns the name of the room that a path lies in.
fn tag(path: &str) -> &str {
    let room = path
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('/').nth(1));
    match room {
        Some(room) => room.trim_end_matches(".json"),
        None => "health",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_holds_every_row_of_the_table_and_nothing_else() {
        let rows = table();
        let rows: BTreeSet<_> = rows
            .iter()
            .map(|route| (route.path.to_owned(), route.method.as_str().to_lowercase()))
            .collect();
        let paths = DOCUMENT["paths"].as_object().unwrap();
        let written = paths.iter().flat_map(|(path, operations)| {
            let methods = operations.as_object().unwrap().keys();
            methods.map(|method| (path.clone(), method.clone()))
        });
        assert_eq!(written.collect::<BTreeSet<_>>(), rows);
    }

    #[test]
    fn every_row_has_a_word_for_programs_of_its_own_a_line_for_people_and_an_answer() {
        let mut ids = BTreeSet::new();
        for route in table() {
            let Route { path, promise, .. } = route;
            assert!(!promise.id.is_empty() && ids.insert(promise.id), "{path}");
            assert!(
                promise.summary.ends_with('.'),
                "{path}: {}",
                promise.summary
            );
            assert!(!promise.answers.is_empty(), "{path}");
        }
    }

    #[test]
    fn what_is_read_and_written_has_one_shape() {
        let mut desk = Desk::new();
        for route in table() {
            desk.operation(&route);
        }
        let read = desk.requests.take_definitions(true);
        let written = desk.answers.take_definitions(true);
        for (name, schema) in &read {
            if let Some(other) = written.get(name) {
                assert_eq!(schema, other, "{name}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(DOCUMENT.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_code_is_explained() {
        let text = DOCUMENT["components"]["schemas"]["Code"].to_string();
        for code in Code::ALL {
            assert!(text.contains(&format!("\"{code}\"")), "{code}");
        }
        assert!(!text.contains("unrecognised"));
    }
}
