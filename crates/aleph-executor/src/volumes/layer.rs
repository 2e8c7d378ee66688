//! What a layer is: how it is written down, and where.

use std::str::FromStr;

/// How a layer's file is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFormat {
    /// The disk's bytes. It has no parent.
    Raw,
    /// What is different from its parent.
    Qcow2,
}

impl LayerFormat {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl FromStr for LayerFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("{text:?} is no format")),
        }
    }
}

impl LayerFormat {
    /// That of a layer with nothing below it.
    pub(super) fn of_lowest(is_encrypted: bool) -> Self {
        match is_encrypted {
            true => Self::Qcow2,
            false => Self::Raw,
        }
    }
}

/// Where a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// A file in the folder of layers.
    Folder,
    /// A logical volume.
    Pool,
}

impl Home {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Pool => "pool",
        }
    }
}

impl FromStr for Home {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "folder" => Ok(Self::Folder),
            "pool" => Ok(Self::Pool),
            _ => Err(format!("{text:?} is no place of layers")),
        }
    }
}
