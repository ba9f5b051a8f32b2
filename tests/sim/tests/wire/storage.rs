use reqwest::Method;
use serde_json::json;
use sim::SimOptions;

use crate::{ACCOUNT, Bed, header, json, send, text};

const UPLOAD: &str = "/upload/storage/v1/b/data/o";

async fn bed() -> Bed {
    let bed = Bed::start().await;
    bed.sim.storage().create_bucket("data");
    bed
}

#[tokio::test]
async fn an_object_is_written_read_in_ranges_and_deleted() {
    let bed = bed().await;
    let put = bed
        .post(&format!("{UPLOAD}?uploadType=media&name=a/b%20c.txt"))
        .header("content-type", "text/plain")
        .body("123456789");
    let (status, object) = json(put).await;
    assert_eq!((status, &object["name"], &object["size"]), (200, &json!("a/b c.txt"), &json!("9")));
    assert_eq!(
        (&object["crc32c"], &object["md5Hash"]),
        (&json!("4waSgw=="), &json!("JfnnlDI7RTiF9RgfG2JNCw=="))
    );
    assert!(object["generation"].is_string() && object["metageneration"] == "1");

    let path = "/storage/v1/b/data/o/a%2Fb%20c.txt";
    assert_eq!(json(bed.get(path)).await.1, object);
    for path in [
        format!("{path}?alt=media"),
        format!("/download{path}?alt=media"),
        "/data/a/b%20c.txt".to_owned(),
    ] {
        let media = send(bed.get(&path)).await;
        assert_eq!(header(&media, "x-goog-hash"), "crc32c=4waSgw==,md5=JfnnlDI7RTiF9RgfG2JNCw==");
        assert_eq!(header(&media, "content-type"), "text/plain");
        assert_eq!(header(&media, "x-goog-generation"), object["generation"]);
        assert_eq!(media.text().await.unwrap(), "123456789");
    }
    let part = send(bed.get(&format!("{path}?alt=media")).header("range", "bytes=2-4")).await;
    assert_eq!(
        (part.status().as_u16(), header(&part, "content-range").as_str()),
        (206, "bytes 2-4/9")
    );
    assert_eq!(part.text().await.unwrap(), "345");
    assert_eq!(
        text(bed.get(&format!("{path}?alt=media")).header("range", "bytes=9-")).await.0,
        416
    );

    assert_eq!(text(bed.api(Method::DELETE, path)).await, (204, String::new()));
    let (status, gone) = json(bed.get(path)).await;
    assert_eq!(
        (status, &gone["error"]["message"]),
        (404, &json!("No such object: data/a/b c.txt"))
    );
    assert_eq!(gone["error"]["errors"][0]["reason"], "notFound");
}

#[tokio::test]
async fn generation_preconditions_make_a_lock() {
    let bed = bed().await;
    let create =
        || bed.post(&format!("{UPLOAD}?uploadType=media&name=lock&ifGenerationMatch=0")).body("me");
    let (status, object) = json(create()).await;
    assert_eq!(status, 200);
    let (status, error) = json(create()).await;
    let reason = json!([{ "message": "At least one of the pre-conditions you specified did not hold.", "domain": "global",
                          "reason": "conditionNotMet", "locationType": "header", "location": "If-Match" }]);
    assert_eq!((status, &error["error"]["errors"]), (412, &reason));

    let generation = object["generation"].as_str().unwrap();
    let path = "/storage/v1/b/data/o/lock";
    assert_eq!(text(bed.get(&format!("{path}?ifGenerationNotMatch={generation}"))).await.0, 304);
    assert_eq!(text(bed.api(Method::DELETE, &format!("{path}?ifGenerationMatch=1"))).await.0, 412);
    let replace = bed
        .post(&format!("{UPLOAD}?uploadType=media&name=lock&ifGenerationMatch={generation}"))
        .body("you");
    let newer = json(replace).await.1["generation"].as_str().unwrap().to_owned();
    assert!(newer.parse::<u64>().unwrap() > generation.parse::<u64>().unwrap());
    assert_eq!(
        text(bed.get(&format!("{path}?generation={generation}"))).await.0,
        404,
        "no versioning"
    );
    assert_eq!(
        text(bed.api(Method::DELETE, &format!("{path}?ifGenerationMatch={newer}"))).await.0,
        204
    );
}

#[tokio::test]
async fn multipart_uploads_carry_metadata_and_are_checked() {
    let bed = bed().await;
    let post = |resource: &str| {
        let body = format!(
            "--==b==\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n--==b==\r\ncontent-type: image/png\r\n\r\n\r\n\r\n--x\r\n--==b==--"
        );
        let request = bed.post(&format!("{UPLOAD}?uploadType=multipart"));
        request.header("content-type", "multipart/related; boundary=\"==b==\"").body(body)
    };
    let (status, object) = json(post(r#"{"name":"p.png","metadata":{"by":"dify"}}"#)).await;
    assert_eq!(
        (status, &object["contentType"], &object["metadata"]),
        (200, &json!("image/png"), &json!({ "by": "dify" }))
    );
    assert_eq!(bed.sim.storage().get("data", "p.png").unwrap().data, "\r\n\r\n--x".as_bytes());
    // googleapiclient for Python ends its lines with a bare line feed.
    let body = "--b\ncontent-type: application/json\n\n{\"name\":\"lf\"}\n--b\ncontent-type: text/plain\n\ndata\r\n--b--\n";
    let request = bed.post(&format!("{UPLOAD}?uploadType=multipart"));
    let request = request.header("content-type", "multipart/related; boundary=b").body(body);
    assert_eq!(json(request).await.0, 200);
    assert_eq!(bed.sim.storage().get("data", "lf").unwrap().data, "data\r".as_bytes());
    let (status, error) = json(post(r#"{"name":"p.png","crc32c":"AAAAAA=="}"#)).await;
    assert_eq!((status, &error["error"]["errors"][0]["reason"]), (400, &json!("invalid")));
    assert_eq!(json(post(r#"{"no":"name"}"#)).await.0, 400);
}

#[tokio::test]
async fn resumable_uploads_go_on_after_a_break() {
    const CHUNK: usize = 256 * 1024;
    let bed = bed().await;
    let begin = bed
        .post(&format!("{UPLOAD}?uploadType=resumable&ifGenerationMatch=0"))
        .json(&json!({ "name": "big" }));
    let begun = send(begin.header("x-upload-content-type", "application/zip")).await;
    let session = header(&begun, "location");
    let data: Vec<u8> = (0..CHUNK + 10).map(|n| u8::try_from(n % 251).unwrap()).collect();
    // The session's URL authorises by itself.
    let put = |range: &str, body: &[u8]| {
        bed.client.put(&session).header("content-range", range).body(body.to_vec())
    };
    let total = data.len();

    assert_eq!(
        text(put("bytes 0-9/*", &data[..10])).await.0,
        400,
        "a chunk is a multiple of 256 KiB"
    );
    let first = send(put(&format!("bytes 0-{}/{total}", CHUNK - 1), &data[..CHUNK])).await;
    assert_eq!(
        (first.status().as_u16(), header(&first, "range")),
        (308, format!("bytes=0-{}", CHUNK - 1))
    );
    let asked = send(put(&format!("bytes */{total}"), &[])).await;
    assert_eq!(
        (asked.status().as_u16(), header(&asked, "range")),
        (308, format!("bytes=0-{}", CHUNK - 1))
    );
    assert_eq!(
        text(put(&format!("bytes {}-{}/{total}", CHUNK + 5, total - 1), &data[CHUNK + 5..]))
            .await
            .0,
        400,
        "a gap"
    );
    let last = || json(put(&format!("bytes {CHUNK}-{}/{total}", total - 1), &data[CHUNK..]));
    let (status, object) = last().await;
    assert_eq!(
        (status, &object["size"], &object["contentType"]),
        (200, &json!(total.to_string()), &json!("application/zip"))
    );
    assert_eq!(last().await, (200, object), "a repeated last chunk gets the same answer");
    assert_eq!(bed.sim.storage().get("data", "big").unwrap().data, data);

    let again = send(bed.post(&format!("{UPLOAD}?uploadType=resumable&name=c"))).await;
    assert_eq!(send(bed.client.delete(header(&again, "location"))).await.status(), 499);
    assert_eq!(send(bed.client.put(header(&again, "location"))).await.status(), 404);
}

#[tokio::test]
async fn listing_knows_prefix_delimiter_and_pages() {
    let bed = bed().await;
    assert_eq!(json(bed.get("/storage/v1/b/data/o")).await.1, json!({ "kind": "storage#objects" }));
    for name in ["a", "d/1", "d/2", "d/e/3", "f/4", "g"] {
        bed.sim.storage().put("data", name, name);
    }
    let list = async |query: &str| {
        let (_, page) = json(bed.get(&format!("/storage/v1/b/data/o?{query}"))).await;
        let mut names: Vec<String> = page["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| item["name"].as_str().unwrap().into())
            .collect();
        names.extend(
            page["prefixes"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|name| name.as_str().unwrap().to_owned()),
        );
        (names, page["nextPageToken"].as_str().map(str::to_owned))
    };
    assert_eq!(list("prefix=d/").await.0, ["d/1", "d/2", "d/e/3"]);
    assert_eq!(list("delimiter=/").await.0, ["a", "g", "d/", "f/"]);
    assert_eq!(list("prefix=d/&delimiter=/").await.0, ["d/1", "d/2", "d/e/"]);
    assert_eq!(list("startOffset=d/2&endOffset=g").await.0, ["d/2", "d/e/3", "f/4"]);
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let (names, next) = list(&format!("delimiter=/&maxResults=1&pageToken={token}")).await;
        assert_eq!(names.len(), 1);
        seen.extend(names);
        let Some(next) = next else { break };
        token = next;
    }
    assert_eq!(seen, ["a", "d/", "f/", "g"]);
}

#[tokio::test]
async fn permissions_are_checked_as_google_checks_them() {
    let bed = bed().await;
    bed.sim.storage().put("data", "x", "1");
    let insert = || bed.post(&format!("{UPLOAD}?uploadType=media&name=x")).body("2");
    bed.sim.iam().deny(ACCOUNT, "storage.objects.delete");
    let (status, error) = json(insert()).await;
    let text_of = format!(
        "{ACCOUNT} does not have storage.objects.delete access to the Google Cloud Storage object. \
         Permission 'storage.objects.delete' denied on resource (or it may not exist)."
    );
    assert_eq!((status, &error["error"]["message"]), (403, &json!(text_of)), "overwriting deletes");
    bed.sim.iam().allow(ACCOUNT, "storage.objects.delete");
    assert_eq!(json(insert()).await.0, 200);

    assert_eq!(text(bed.get("/storage/v1/b/data/o/none")).await.0, 404);
    bed.sim.iam().deny(ACCOUNT, "storage.objects.list");
    assert_eq!(
        text(bed.get("/storage/v1/b/data/o/none")).await.0,
        403,
        "who may not list is not told what is missing"
    );
    assert_eq!(text(bed.get("/storage/v1/b/data/o")).await.0, 403);
    bed.sim.iam().deny(ACCOUNT, "storage.buckets.get");
    assert_eq!(text(bed.get("/storage/v1/b/data")).await.0, 403);
    let asked = "permissions=storage.objects.get&permissions=storage.objects.list";
    let (_, held) = json(bed.get(&format!("/storage/v1/b/data/iam/testPermissions?{asked}"))).await;
    assert_eq!(held["permissions"], json!(["storage.objects.get"]));
}

#[tokio::test]
async fn a_bearer_is_needed_unless_anonymous_clients_are_allowed() {
    let closed = bed().await;
    let (status, error) =
        json(closed.client.get(format!("{}/storage/v1/b/data", closed.sim.urls().googleapis)))
            .await;
    assert_eq!((status, &error["error"]["errors"][0]["reason"]), (401, &json!("required")));
    let open = Bed::with(SimOptions { anonymous_storage: true, ..SimOptions::default() }).await;
    open.sim.storage().create_bucket("data");
    let url = format!("{}/storage/v1/b/data", open.sim.urls().googleapis);
    assert_eq!(text(open.client.get(&url)).await.0, 200);
    let (status, error) = json(open.client.get(&url).bearer_auth("nobody's")).await;
    assert_eq!((status, &error["error"]["errors"][0]["reason"]), (401, &json!("authError")));
}

#[tokio::test]
async fn buckets_and_copies() {
    let bed = bed().await;
    assert_eq!(
        json(bed.get("/storage/v1/b/none")).await.1["error"]["message"],
        "The specified bucket does not exist."
    );
    let create = || {
        bed.post("/storage/v1/b?project=dify-sim").json(&json!({ "name": "new", "location": "us" }))
    };
    assert_eq!(json(create()).await.1["location"], "US");
    assert_eq!(json(create()).await.0, 409);
    bed.sim.storage().put("data", "a/1", "one");
    let (_, done) =
        json(bed.post("/storage/v1/b/data/o/a%2F1/rewriteTo/b/new/o/b%2F1?ifGenerationMatch=0"))
            .await;
    assert_eq!(
        (&done["done"], &done["resource"]["id"].as_str().unwrap()[..8]),
        (&json!(true), "new/b/1/")
    );
    assert_eq!(
        json(bed.post("/storage/v1/b/data/o/a%2F1/rewriteTo/b/new/o/b%2F1?ifGenerationMatch=0"))
            .await
            .0,
        412
    );
    assert_eq!(json(bed.api(Method::DELETE, "/storage/v1/b/new")).await.0, 409, "not empty");
    let patched = bed
        .api(Method::PATCH, "/storage/v1/b/new/o/b%2F1")
        .json(&json!({ "metadata": { "k": "v" } }));
    let (_, patched) = json(patched).await;
    assert_eq!((&patched["metageneration"], &patched["metadata"]["k"]), (&json!("2"), &json!("v")));
}
