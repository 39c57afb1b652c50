"""Who else may read a customer's data in BigQuery: granted, listed, revoked."""

import pytest

from adapters.granter import grants_of, tell_all
from adapters.postgres import grants
from application.ports import Away
from domain.customer import MAX_READERS

JO = "user:jo@acmecorp.com"


def readers(acme) -> dict[str, str]:
    return {item["principal"]: item["state"] for item in acme.get(f"{acme.url}/bigquery-readers").json()["items"]}


def grant(acme, principal=JO):
    return acme.post(f"{acme.url}/bigquery-readers", json={"principal": principal})


def test_a_reader_is_granted_and_revoked(acme):
    granted = grant(acme, "serviceaccount:Robot@Acme.iam.gserviceaccount.com").json()
    assert granted["principal"] == "serviceAccount:robot@acme.iam.gserviceaccount.com"
    assert (granted["state"], granted["problem"]) == ("PENDING", None)
    assert grant(acme).status_code == 200
    assert readers(acme) == {granted["principal"]: "PENDING", JO: "PENDING"}
    url = f"{acme.url}/bigquery-readers/{granted['grant_id']}"
    assert acme.delete(url).status_code == 204
    assert acme.delete(url).status_code == 404
    assert readers(acme) == {JO: "PENDING"}


def test_nobody_is_granted_twice_also_in_capitals(acme):
    assert grant(acme).status_code == 200
    assert [grant(acme, p).status_code for p in (JO, JO.upper(), "User:Jo@ACMEcorp.com")] == [409] * 3
    assert readers(acme) == {JO: "PENDING"}


def test_there_are_no_more_than_twenty(acme):
    for number in range(MAX_READERS):
        assert grant(acme, f"user:jo{number}@acmecorp.com").status_code == 200
    refused = grant(acme, "user:one_more@acmecorp.com")
    assert (refused.status_code, refused.json()["detail"]) == (
        403,
        f"A customer can have {MAX_READERS} BigQuery readers. Revoke one first.",
    )


@pytest.mark.parametrize(
    "principal",
    [
        "allUsers",
        "allAuthenticatedUsers",
        "domain:acmecorp.com",
        "projectReaders",
        "jo@acmecorp.com",
        "user:",
        "user:jo",
        'user:jo"@acmecorp.com',
        "user:jo'@acmecorp.com",
        "user:jo`@acmecorp.com",
        'user:a@b.com", "allUsers',
        "user:jo@acmecorp.com) FILTER USING (TRUE) --",
        "user:jo@acmecorp.com\n",
        "user: jo@acmecorp.com",
        "user:jó@acmecorp.com",
        "user:" + "x" * 250 + "@acmecorp.com",
    ],
)
def test_nothing_else_is_a_principal(acme, principal):
    refused = grant(acme, principal)
    assert refused.status_code == 422, refused.text
    assert readers(acme) == {}


def test_what_keeps_bigquery_from_knowing_is_told(api, acme):
    """Its BigQuery refuses every connection; nobody else's readers are lost by it."""
    for others in grants.due(api.service.datastore):
        grants.applied(api.service.datastore, others)
    grant(acme)
    with pytest.raises(Away):
        tell_all(api.service, grants_of(api.service))
    [item] = acme.get(f"{acme.url}/bigquery-readers").json()["items"]
    assert item["state"] == "PENDING"
    assert item["problem"].startswith("BigQuery is away")


def test_a_problem_is_tried_again_later_and_what_is_known_after_an_hour(api, acme):
    datastore = api.service.datastore

    def mine() -> list[grants.Readers]:
        return [readers for readers in grants.due(datastore) if readers.customer_id == acme.id]

    granted = grant(acme).json()
    [wanted] = mine()
    assert (wanted.active, wanted.revoked) == ([JO], [])
    grants.failed(datastore, wanted, "It says no.")
    assert mine() == []
    with datastore.reading() as cursor:
        cursor.execute("UPDATE bigquery_grants SET due_at = now() WHERE customer_id = %s", (acme.id,))
    assert mine() == [wanted]
    grants.applied(datastore, wanted)
    assert mine() == []
    assert readers(acme) == {JO: "ACTIVE"}
    grants.tell_again(datastore)
    assert mine() == [wanted]
    grants.applied(datastore, wanted)

    assert acme.delete(f"{acme.url}/bigquery-readers/{granted['grant_id']}").status_code == 204
    [revoked] = mine()
    assert (revoked.active, revoked.revoked) == ([], [JO])
    grants.applied(datastore, revoked)
    grant(acme)
    [again] = mine()
    assert (again.active, again.revoked) == ([JO], [])


def test_of_an_erased_customer_nothing_is_kept(api, acme):
    datastore = api.service.datastore
    grant(acme)
    [wanted] = [readers for readers in grants.due(datastore) if readers.customer_id == acme.id]
    grants.applied(datastore, wanted)
    with datastore.reading() as cursor:
        cursor.execute("DELETE FROM customer_bigquery_readers WHERE customer_id = %s", (acme.id,))
    [gone] = [readers for readers in grants.due(datastore) if readers.customer_id == acme.id]
    assert (gone.active, gone.revoked) == ([], [])
    grants.applied(datastore, gone)
    assert [readers for readers in grants.due(datastore) if readers.customer_id == acme.id] == []
