//! What a driver only reads: regions, instances and the account.

use hyper::Uri;
use serde_json::{Value, json};

use super::{
    Outcome, Refusal,
    page::{ListQuery, position},
};
use crate::{
    answer::Answer,
    cloud::{Cloud, Instance},
    region::{REGIONS, Region},
};

pub(super) fn list_regions(uri: &Uri) -> Outcome {
    let all: Vec<&Region> = REGIONS.iter().collect();
    let place = |items: &[&Region], wanted: &str| position(items, |r| r.id, wanted);
    let (page, meta) = ListQuery::of(uri)?.page(all, |r| r.id, place)?;
    let rows: Vec<Value> = page.into_iter().map(region).collect();
    Ok(Answer::json(200, &json!({"regions": rows, "meta": meta})))
}

fn region(region: &Region) -> Value {
    json!({
        "id": region.id,
        "city": region.city,
        "country": region.country,
        "continent": region.continent,
        "options": region.options(),
        "connectivity": ["public_ip", "nat_gateway"],
    })
}

pub(super) fn list_instances(cloud: &Cloud, uri: &Uri) -> Outcome {
    let query = ListQuery::of(uri)?;
    // No instance bears a tag.
    if query.tag.as_deref().is_some_and(|tag| !tag.is_empty()) {
        let (_, meta) = query.page(Vec::<String>::new(), String::as_str, |_, _| None)?;
        let nothing: [Value; 0] = [];
        return Ok(Answer::json(200, &json!({"instances": nothing, "meta": meta})));
    }
    let wanted = |filter: &Option<String>, value: &str| {
        let filter = filter.as_deref().filter(|filter| !filter.is_empty());
        filter.is_none_or(|filter| filter.eq_ignore_ascii_case(value))
    };
    let state = cloud.state();
    let mut all: Vec<&Instance> = state.instances.iter().collect();
    all.retain(|i| wanted(&query.label, &i.label) && wanted(&query.hostname, &i.label));
    all.retain(|i| wanted(&query.region, i.region) && wanted(&query.main_ip, &i.main_ip));
    let place = |items: &[&Instance], wanted: &str| position(items, |i| &i.id, wanted);
    let (page, meta) = query.page(all, |i| &i.id, place)?;
    let rows: Vec<Value> = page.into_iter().map(instance).collect();
    Ok(Answer::json(200, &json!({"instances": rows, "meta": meta})))
}

pub(super) fn get_instance(cloud: &Cloud, id: &str) -> Outcome {
    let state = cloud.state();
    let found = state.instance(id).ok_or_else(|| Refusal::new(404, "instance not found"))?;
    Ok(Answer::json(200, &json!({ "instance": instance(found) })))
}

fn instance(instance: &Instance) -> Value {
    json!({
        "id": instance.id,
        "os": "Debian 13 x64 (trixie)",
        "ram": 4096,
        "disk": 80,
        "plan": "vc2-2c-4gb",
        "main_ip": instance.main_ip,
        "vpc_only": false,
        "vcpu_count": 2,
        "region": instance.region,
        "date_created": instance.date_created,
        "status": instance.status,
        "allowed_bandwidth": 3000,
        "netmask_v4": "255.255.255.0",
        "gateway_v4": "203.0.113.1",
        "power_status": instance.power_status,
        "server_status": instance.server_status(),
        "v6_network": "",
        "v6_main_ip": "",
        "v6_network_size": 0,
        "label": instance.label,
        "internal_ip": "",
        "kvm": "",
        "os_id": 2625,
        "app_id": 0,
        "image_id": "",
        "snapshot_id": "",
        "firewall_group_id": "",
        "features": [],
        "hostname": instance.label,
        "tags": [],
        "user_scheme": "root",
    })
}

pub(super) fn account() -> Answer {
    let account = json!({
        "name": "Simulated Account",
        "email": "simulated@example.com",
        "acls": ["subscriptions_view", "subscriptions", "provisioning"],
        "balance": -100.5,
        "pending_charges": 12.34,
        "last_payment_date": "2026-01-01T00:00:00+00:00",
        "last_payment_amount": -100.5,
    });
    Answer::json(200, &json!({ "account": account }))
}
