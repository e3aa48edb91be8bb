"""The columns of FOCUS, the FinOps Open Cost and Usage Specification, as we write them: which of each dataset
and version, with their types. Those that do not apply (regions, other currencies, split costs) are left out,
as the standard has it. Pure.

Source: FOCUS 1.2 and 1.4 (focus.finops.org, CC BY 4.0). Columns are in alphabetical order, ours (`x_…`) last.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from billing.exports.table import Column, Kind


class Version(StrEnum):
    """Of the standard."""

    V1_2 = "1.2"
    V1_4 = "1.4"


class Dataset(StrEnum):
    """Of the standard. 1.2 has the first alone."""

    COST_AND_USAGE = "cost-and-usage"
    CONTRACT_COMMITMENT = "contract-commitment"
    BILLING_PERIOD = "billing-period"
    INVOICE_DETAIL = "invoice-detail"


_COST_AND_USAGE: Final = """
    BilledCost! BillingAccountId! BillingAccountName BillingCurrency! BillingPeriodEnd! BillingPeriodStart!
    CapacityReservationId CapacityReservationStatus ChargeCategory! ChargeClass ChargeDescription!
    ChargeFrequency! ChargePeriodEnd! ChargePeriodStart! CommitmentDiscountCategory CommitmentDiscountId
    CommitmentDiscountName CommitmentDiscountQuantity CommitmentDiscountStatus CommitmentDiscountType
    CommitmentDiscountUnit ConsumedQuantity ConsumedUnit ContractedCost! ContractedUnitPrice EffectiveCost!
    InvoiceId InvoiceIssuerName! ListCost! ListUnitPrice PricingCategory PricingQuantity PricingUnit
    ResourceId ResourceName ResourceType ServiceCategory! ServiceName! ServiceSubcategory! SkuId SkuMeter
    SkuPriceDetails SkuPriceId SubAccountId SubAccountName Tags
"""
_OF_VERSION: Final = {
    Version.V1_2: "ProviderName! PublisherName!",
    Version.V1_4: "ContractApplied HostProviderName! InvoiceDetailId ServiceProviderName!",
}
# Ours: the line of the invoice, and its type.
_OURS: Final = "x_InvoiceLineId x_InvoiceLineType!"
_CONTRACT_COMMITMENT: Final = """
    BillingCurrency! ContractCommitmentApplicability! ContractCommitmentBenefitCategory!
    ContractCommitmentCategory! ContractCommitmentCost ContractCommitmentCreated!
    ContractCommitmentDescription! ContractCommitmentDiscountPercentage ContractCommitmentDurationType!
    ContractCommitmentFulfillmentInterval! ContractCommitmentId! ContractCommitmentLastUpdated!
    ContractCommitmentLifecycleStatus! ContractCommitmentModel! ContractCommitmentOfferCategory!
    ContractCommitmentPaymentInterval! ContractCommitmentPaymentModel! ContractCommitmentPeriodEnd!
    ContractCommitmentPeriodStart! ContractCommitmentQuantity ContractCommitmentType! ContractCommitmentUnit
    ContractId! ContractPeriodEnd! ContractPeriodStart! InvoiceIssuerName! ServiceProviderName!
"""
_BILLING_PERIOD: Final = """
    BillingPeriodCreated! BillingPeriodEnd! BillingPeriodLastUpdated! BillingPeriodStart! BillingPeriodStatus!
    InvoiceIssuerName!
"""
_INVOICE_DETAIL: Final = """
    BilledCost! BillingAccountId! BillingCurrency! BillingPeriodEnd! BillingPeriodStart! ChargeCategory!
    InvoiceDetailCreated! InvoiceDetailDescription! InvoiceDetailGrain! InvoiceDetailId!
    InvoiceDetailLastUpdated! InvoiceId! InvoiceIssueDate! InvoiceIssueStatus! InvoiceIssuerName!
    PaymentCurrency! PaymentDueDate PaymentTerms! ReferenceInvoiceId! x_InvoiceLineType!
"""
_DECIMALS: Final = ("Cost", "Quantity", "UnitPrice", "Percentage")
_MOMENTS: Final = ("PeriodStart", "PeriodEnd", "Created", "LastUpdated", "Date")


def columns_of(version: Version, dataset: Dataset) -> tuple[Column, ...]:
    """In the order of the file. A dataset that the version does not have has none."""
    if dataset is Dataset.COST_AND_USAGE:
        return tuple(_columns(f"{_COST_AND_USAGE} {_OF_VERSION[version]} {_OURS}".split()))
    if version is Version.V1_2:
        return ()
    listed = {
        Dataset.CONTRACT_COMMITMENT: _CONTRACT_COMMITMENT,
        Dataset.BILLING_PERIOD: _BILLING_PERIOD,
        Dataset.INVOICE_DETAIL: _INVOICE_DETAIL,
    }[dataset]
    return tuple(_columns(listed.split()))


def _columns(names: Iterable[str]) -> Iterable[Column]:
    """`Name!`: never empty."""
    for name in sorted(names, key=lambda each: (each.startswith("x_"), each.rstrip("!"))):
        bare = name.rstrip("!")
        kind = (
            Kind.DECIMAL
            if bare.endswith(_DECIMALS)
            else Kind.SECOND
            if bare.endswith(_MOMENTS)
            else Kind.TEXT
        )
        yield Column(bare, kind, empty=bare == name)
