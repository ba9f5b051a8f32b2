use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde_json::{Value, json};

use crate::{ACCOUNT, Bed, NOW, json, send, text};

#[tokio::test]
async fn the_metadata_token_is_cached_until_five_minutes_before_its_end() {
    let bed = Bed::start().await;
    let token = async || json(bed.metadata("instance/service-accounts/default/token")).await.1;
    let first = token().await;
    assert_eq!((&first["expires_in"], &first["token_type"]), (&json!(3_599), &json!("Bearer")));
    bed.sim.clock().advance(Duration::from_mins(50));
    let cached = token().await;
    assert_eq!(cached["access_token"], first["access_token"]);
    assert_eq!(cached["expires_in"], 599);
    bed.sim.clock().advance(Duration::from_mins(5));
    let second = token().await;
    assert_ne!(second["access_token"], first["access_token"]);
    assert_eq!(second["expires_in"], 3_599);
}

#[tokio::test]
async fn identity_tokens_verify_against_the_key_set() {
    let bed = Bed::start().await;
    let path = "instance/service-accounts/default/identity";
    assert_eq!(
        text(bed.metadata(path)).await,
        (400, "non-empty audience parameter required".into())
    );
    let (_, jwt) = text(bed.metadata(&format!("{path}?audience=vm-1&format=full"))).await;

    let (_, keys) = json(bed.client.get(bed.sim.urls().certs)).await;
    let key = &keys["keys"][0];
    let part = |value: &str| URL_SAFE_NO_PAD.decode(value).unwrap();
    let public = RsaPublicKeyComponents {
        n: part(key["n"].as_str().unwrap()),
        e: part(key["e"].as_str().unwrap()),
    };
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    public.verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &part(signature)).unwrap();
    let (head, claims) = signed.split_once('.').unwrap();
    let head: Value = serde_json::from_slice(&part(head)).unwrap();
    assert_eq!(head, json!({ "alg": "RS256", "kid": key["kid"], "typ": "JWT" }));
    let claims: Value = serde_json::from_slice(&part(claims)).unwrap();
    assert_eq!(claims["aud"], "vm-1");
    assert_eq!(claims["iss"], "https://accounts.google.com");
    assert_eq!(claims["email"], ACCOUNT);
    assert_eq!(claims["exp"], NOW + 3_600);
    assert_eq!(claims["google"]["compute_engine"]["instance_id"], "4212345678901234501");

    let (_, standard) = text(bed.metadata(&format!("{path}?audience=vm-1"))).await;
    let claims: Value = serde_json::from_slice(&part(standard.split('.').nth(1).unwrap())).unwrap();
    assert_eq!((claims.get("email"), claims.get("google")), (None, None));
}

#[tokio::test]
async fn the_token_endpoint_takes_assertions_of_its_own_keys_only() {
    let bed = Bed::start().await;
    let key = bed.sim.service_account_key(ACCOUNT);
    assert_eq!(key["token_uri"], bed.sim.urls().token);
    let post = |assertion: &str| {
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}"
        );
        let request = bed.client.post(bed.sim.urls().token).body(form);
        request.header("content-type", "application/x-www-form-urlencoded")
    };
    let claims = |issued: u64| {
        json!({ "iss": ACCOUNT, "sub": null, "aud": key["token_uri"], "iat": issued, "exp": issued + 3_595,
                "scope": "https://www.googleapis.com/auth/cloud-platform" })
    };
    let good = signed(key["private_key"].as_str().unwrap(), &claims(NOW));
    let (status, token) = json(post(&good)).await;
    assert_eq!(
        (status, &token["expires_in"], &token["token_type"]),
        (200, &json!(3_599), &json!("Bearer"))
    );

    bed.sim.secrets().add_version("s", "v");
    let url =
        format!("{}/v1/projects/dify-sim/secrets/s/versions/1:access", bed.sim.urls().googleapis);
    let access = |bearer: &str| bed.client.get(&url).bearer_auth(bearer);
    let bearer = token["access_token"].as_str().unwrap();
    assert_eq!(text(access(bearer)).await.0, 200);
    bed.sim.clock().advance(Duration::from_hours(1));
    let (status, expired) = json(access(bearer)).await;
    assert_eq!((status, &expired["error"]["status"]), (401, &json!("UNAUTHENTICATED")));
    assert_eq!(expired["error"]["details"][0]["reason"], "ACCESS_TOKEN_EXPIRED");

    let (status, late) = json(post(&good)).await;
    assert_eq!((status, &late["error"]), (400, &json!("invalid_grant")));
    let forged = good.replace(
        good.split('.').nth(1).unwrap(),
        &URL_SAFE_NO_PAD.encode(claims(NOW + 3_600).to_string()),
    );
    assert_eq!(
        json(post(&forged)).await,
        (400, json!({ "error": "invalid_grant", "error_description": "Invalid JWT Signature." }))
    );
    let other = bed.client.post(bed.sim.urls().token).body("grant_type=password");
    assert_eq!(json(other).await.1["error"], "unsupported_grant_type");
}

#[tokio::test]
async fn a_vm_without_an_account_has_no_token() {
    let bed = Bed::start().await;
    bed.vm.update(|instance| instance.service_account.clear());
    assert_eq!(send(bed.metadata("instance/service-accounts/default/token")).await.status(), 404);
    assert_eq!(text(bed.metadata("instance/service-accounts/")).await, (200, String::new()));
}

/// A JWT as a service account's owner signs it, padded as gcp_auth 0.12 pads it.
fn signed(pem: &str, claims: &Value) -> String {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let der = STANDARD
        .decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>())
        .unwrap();
    let key = ring::signature::RsaKeyPair::from_pkcs8(&der).unwrap();
    let encoded = |value: &Value| URL_SAFE.encode(value.to_string());
    let signed =
        format!("{}.{}", encoded(&json!({ "alg": "RS256", "typ": "JWT" })), encoded(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(
        &ring::signature::RSA_PKCS1_SHA256,
        &ring::rand::SystemRandom::new(),
        signed.as_bytes(),
        &mut signature,
    )
    .unwrap();
    format!("{signed}.{}", URL_SAFE.encode(signature))
}
