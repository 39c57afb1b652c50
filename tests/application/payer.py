"""Somebody who pays at Stripe, and what Stripe tells of that."""

from datetime import timedelta

from application import billing
from application.billing import Contact, EndAccess, HearStripe
from domain.billing import Terms
from domain.billing_events import CheckoutReported, InvoiceReported, SubscriptionReported
from domain.plans import Plan

TERMS = Terms(prices={"price_s": Plan.STARTER, "price_p": Plan.PROFESSIONAL, "price_x": Plan.SCALE})
WHO = Contact(company_name="Example Works GmbH", admin_email="owner@example.com")
CUS = "cus_1"


class Payer:
    """Tells the world what Stripe would of one of its customers; instants are days after `began`."""

    def __init__(self, world):
        self.world = world
        self.began = world.at

    def day(self, number):
        return self.began + timedelta(days=number)

    def subscription(self, event_id, said=0, status="active", price="price_p", name="sub_1", **more):
        given = {"type": "customer.subscription.updated", "began_at": self.began, "period_start": self.began}
        return SubscriptionReported(
            event_id=event_id,
            said_at=self.day(said),
            subscription_id=name,
            status=status,
            price_ids=(price,),
            **{"period_end": self.day(30), **given, **more},
        )

    def invoice(self, event_id, said, status):
        return InvoiceReported(
            event_id=event_id,
            said_at=self.day(said),
            type="invoice.payment_failed" if status == "open" else "invoice.paid",
            invoice_id="in_1",
            status=status,
            subscription_id="sub_1",
            failed=status == "open",
        )

    def checkout(self, event_id="evt_c", names="acme", **more):
        given = {"type": "checkout.session.completed", "session_id": f"cs_{event_id}", "paid": True}
        return CheckoutReported(event_id=event_id, said_at=self.began, names=names, **{**given, **more})

    def tell(self, *reports, cus=CUS, terms=TERMS, contact=WHO):
        for report in reports:
            who = contact if isinstance(report, CheckoutReported) else None
            stamp = self.world.stamp("stripe")
            command = HearStripe(**stamp, stripe_customer_id=cus, live=False, report=report, contact=who)
            billing.hear_stripe(command, self.world.platform, self.world.vault, terms)

    def end(self, terms=TERMS, **more):
        command = EndAccess(**self.world.stamp("service:s1"), **more)
        return billing.end_access(command, self.world.platform, terms)

    def account(self, cus=CUS):
        return self.world.row("billing_accounts", stripe_customer_id=cus)

    def problems(self):
        return [(r["problem"], r["subject"]) for r in self.world.rows("billing_problems") if r["solved_at"] is None]
