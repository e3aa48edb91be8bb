"""What FOCUS asks of each row, in our words, of versions 1.2 and 1.4 (focus.finops.org, CC BY 4.0): which
columns may be null and when, which values are allowed, and how costs, prices and quantities belong together.

The published validator (of 1.2) was run over the same file by hand: docs/decisions/062-focus.md.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

ALLOWED: Final[dict[str, set[str]]] = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "CapacityReservationStatus": {"Used", "Unused"},
    "CommitmentDiscountCategory": {"Spend", "Usage"},
    "CommitmentDiscountStatus": {"Used", "Unused"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
    "BillingCurrency": {"USD"},
    "PaymentCurrency": {"USD"},
    "BillingPeriodStatus": {"Open", "Closed"},
    "InvoiceIssueStatus": {"Open", "Issued", "Voided"},
    "ContractCommitmentBenefitCategory": {"Discount", "Entitlement", "Availability", "Other"},
    "ContractCommitmentCategory": {"Spend", "Usage"},
    "ContractCommitmentFulfillmentInterval": {
        "Hourly", "Daily", "Weekly", "Monthly", "Quarterly", "Semi-Annual", "Annual", "Full Period",
        "Transactional", "Custom",
    },
    "ContractCommitmentLifecycleStatus": {
        "Proposed", "Pending", "Active", "Exhausted", "Expired", "Canceled", "Superseded",
    },
    "ContractCommitmentModel": {"Continuous", "Discontinuous"},
    "ContractCommitmentOfferCategory": {"Negotiated", "Public"},
    "ContractCommitmentPaymentInterval": {
        "One-Time", "Monthly", "Quarterly", "Semi-Annual", "Annual", "Custom",
    },
    "ContractCommitmentPaymentModel": {"No Upfront", "Partial Upfront", "All Upfront"},
}  # fmt: skip
# Null together with another column, and not null together.
_WITH: Final = {
    "CommitmentDiscountCategory": "CommitmentDiscountId", "CommitmentDiscountType": "CommitmentDiscountId",
    "CommitmentDiscountUnit": "CommitmentDiscountQuantity", "ConsumedUnit": "ConsumedQuantity",
    "PricingUnit": "PricingQuantity", "SubAccountName": "SubAccountId", "ResourceType": "ResourceId",
    "InvoiceId": "x_InvoiceLineId", "ContractCommitmentUnit": "ContractCommitmentQuantity",
}  # fmt: skip
_PRICED: Final = (
    "SkuId", "SkuPriceId", "PricingQuantity", "PricingCategory", "ListUnitPrice", "ContractedUnitPrice",
)  # fmt: skip
_OBJECTS: Final = (
    "Tags", "SkuPriceDetails", "ContractApplied", "InvoiceDetailGrain", "ContractCommitmentApplicability",
)  # fmt: skip
# A product of a price and a quantity of twelve decimals each.
_PICO: Final = Decimal("0.000000000001")

Row = Mapping[str, str]


def broken(row: Row) -> Iterator[str]:
    """What of the standard a row of a CSV file breaks; empty is null."""
    for name, value in row.items():
        if value and name in ALLOWED and value not in ALLOWED[name]:
            yield f"{name}: {value!r} is not allowed"
        if value and name in _OBJECTS and not isinstance(json.loads(value), dict):
            yield f"{name}: no object"
        if _WITH.get(name) in row and (not value) is not (not row.get(_WITH[name])):
            yield f"{name}: null, and {_WITH[name]} is not, or the other way round"
    if "ChargeCategory" in row and "EffectiveCost" in row:
        yield from _charge(row)


def _charge(row: Row) -> Iterator[str]:
    category, correction = row["ChargeCategory"], row["ChargeClass"] == "Correction"
    status, commitment = row["CommitmentDiscountStatus"], row["CommitmentDiscountId"]
    billed, effective = Decimal(row["BilledCost"]), Decimal(row["EffectiveCost"])
    wanted = category in {"Usage", "Purchase"} and not correction
    for name in _PRICED:
        if wanted and not row[name]:
            yield f"{name}: null"
        if row[name] and (category == "Tax" or (name != "SkuId" and not row["SkuPriceId"])):
            yield f"{name}: not null"
    for name in ("ListUnitPrice", "ContractedUnitPrice"):
        if row[name]:
            cost, product = Decimal(row[name.replace("UnitPrice", "Cost")]), Decimal(row[name])
            product *= Decimal(row["PricingQuantity"])
            # Unit-hours of thirds of a second have no end.
            if abs(cost - product) > _PICO * max(1, Decimal(row[name])):
                yield f"{name}: {product} is not {cost}"
    consumed = category == "Usage" and status != "Unused"
    if bool(row["ConsumedQuantity"]) is not consumed:
        yield "ConsumedQuantity: null, or not null"
    if bool(row["CommitmentDiscountQuantity"]) is not bool(wanted and commitment):
        yield "CommitmentDiscountQuantity: null, or not null"
    if bool(status) is not bool(commitment and category == "Usage"):
        yield "CommitmentDiscountStatus: null, or not null"
    reserved = row["CapacityReservationId"] and category == "Usage"
    if bool(row["CapacityReservationStatus"]) is not bool(reserved):
        yield "CapacityReservationStatus: null, or not null"
    if commitment and category == "Purchase" and (effective or row["PricingCategory"] == "Committed"):
        yield "EffectiveCost, PricingCategory: of a purchase of a commitment"
    if status and (billed or row["PricingCategory"] != "Committed"):
        yield "BilledCost, PricingCategory: of what a commitment covers"
    if not status and not (commitment and category == "Purchase") and effective != billed:
        yield "EffectiveCost: not BilledCost"
    if (category == "Purchase" or status == "Unused") and commitment != row["ResourceId"]:
        yield "ResourceId: not the commitment that was bought or not used"
    if category == "Purchase" and row["ChargeFrequency"] == "Usage-Based":
        yield "ChargeFrequency: of a purchase"
    if row["ChargePeriodStart"] >= row["ChargePeriodEnd"]:
        yield "ChargePeriodStart: not before ChargePeriodEnd"
