//! Which features of the CPU a guest sees: `/cpu-config`.
//!
//! On x86-64 by CPUID leaves and MSRs, on arm64 by features of KVM and registers; a Firecracker knows
//! those of its own architecture alone.

use super::fault::Problem;
use super::wire::hexadecimal;
use super::{Body, Check};
use serde::{Deserialize, Serialize};

/// The most that Firecracker's description allows for a 32-bit number.
const MAX_INT32: u64 = i32::MAX as u64;

/// Changes to what the host's CPU has. Nothing at all is a valid one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Capabilities of KVM that are needed beyond Firecracker's own (`"121"`), or are not (`"!121"`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kvm_capabilities: Vec<String>,
    /// x86-64: CPUID leaves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpuid_modifiers: Vec<CpuidLeafModifier>,
    /// x86-64: model-specific registers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub msr_modifiers: Vec<MsrModifier>,
    /// arm64: features of a vCPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpu_features: Vec<VcpuFeatures>,
    /// arm64: registers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reg_modifiers: Vec<ArmRegisterModifier>,
}

/// Changes to one CPUID leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidLeafModifier {
    /// The leaf.
    #[serde(with = "hexadecimal")]
    pub leaf: u32,
    /// The leaf within it.
    #[serde(with = "hexadecimal")]
    pub subleaf: u32,
    /// KVM's flags of the entry.
    pub flags: u32,
    /// What changes.
    pub modifiers: Vec<CpuidRegisterModifier>,
}

/// A change to one register of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidRegisterModifier {
    /// Which.
    pub register: CpuidRegister,
    /// Its bits, 32 at most.
    pub bitmap: Bitmap,
}

/// A register that CPUID answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names of the registers say all")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A change to a model-specific register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Its number.
    #[serde(with = "hexadecimal")]
    pub addr: u32,
    /// Its bits, 64 at most.
    pub bitmap: Bitmap,
}

/// A change to the features of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuFeatures {
    /// Which word of `kvm_vcpu_init.features`.
    pub index: u32,
    /// Its bits, 32 at most.
    pub bitmap: Bitmap,
}

/// A change to a register of arm64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmRegisterModifier {
    /// Its id, as KVM has it.
    #[serde(with = "hexadecimal")]
    pub addr: u64,
    /// Its bits, 128 at most.
    pub bitmap: Bitmap,
}

/// Bits of a register, the highest first: `0` and `1` are set, `x` stays as it is, `_` has no
/// meaning. `0b` may stand before them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bitmap(pub String);

impl Bitmap {
    fn check(&self, check: &mut Check, width: usize) {
        let bits = self.0.strip_prefix("0b").unwrap_or(&self.0);
        if let Some(other) = bits.chars().find(|c| !matches!(c, '0' | '1' | 'x' | '_')) {
            check.fault("bitmap", Problem::Character(other));
        }
        check.text("bitmap", &bits.replace('_', ""), width);
    }
}

impl Body for CpuConfig {
    fn check(&self, check: &mut Check) {
        for (i, capability) in self.kvm_capabilities.iter().enumerate() {
            let number = capability.strip_prefix('!').unwrap_or(capability);
            let is_number = number.bytes().all(|b| b.is_ascii_digit());
            check.refuse_if(
                &format!("kvm_capabilities[{i}]"),
                !is_number || number.parse::<u32>().is_err(),
                "has to be a number, or one after a !",
            );
        }
        const OTHER: &str = "is for CPUs of another architecture";
        let of_x86 = !self.cpuid_modifiers.is_empty() || !self.msr_modifiers.is_empty();
        check.refuse_if("", of_x86 && !cfg!(target_arch = "x86_64"), OTHER);
        let of_arm = !self.vcpu_features.is_empty() || !self.reg_modifiers.is_empty();
        check.refuse_if("", of_arm && !cfg!(target_arch = "aarch64"), OTHER);
        check.each("cpuid_modifiers", &self.cpuid_modifiers, |check, leaf| {
            check.range("flags", leaf.flags, 0, MAX_INT32);
            check.each("modifiers", &leaf.modifiers, |check, register| {
                register.bitmap.check(check, 32);
            });
        });
        check.each("msr_modifiers", &self.msr_modifiers, |check, register| {
            register.bitmap.check(check, 64);
        });
        check.each("vcpu_features", &self.vcpu_features, |check, features| {
            check.range("index", features.index, 0, MAX_INT32);
            features.bitmap.check(check, 32);
        });
        check.each("reg_modifiers", &self.reg_modifiers, |check, register| {
            register.bitmap.check(check, 128);
        });
    }
}
