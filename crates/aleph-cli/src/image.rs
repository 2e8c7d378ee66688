//! `aleph image`.

use crate::args::{ImageCommand, NodeArgs};
use crate::boot;
use crate::output::{print, size, table};
use crate::progress::Bars;
use aleph_image::{Image, Recipe, Store};
use anyhow::Result;

pub(crate) fn image(node: &NodeArgs, command: ImageCommand) -> Result<u8> {
    let store = Store::open(boot::paths(node)?.state())?;
    match command {
        ImageCommand::Build { recipe } => {
            let recipe: Recipe = recipe.parse()?;
            let image = store.build(recipe, &mut Bars::default())?;
            print(format!("{} {}", image.digest(), image.names().join(" ")))?;
        }
        ImageCommand::Import { source, name } => {
            let image = store.import(&source, &name, &mut Bars::default())?;
            print(format!("{} {}", image.digest(), image.names().join(" ")))?;
        }
        ImageCommand::Ls { json } => list(&store.list()?, json)?,
        ImageCommand::Rm { images } => {
            for reference in images {
                store.remove(&reference)?;
                print(reference)?;
            }
        }
    }
    Ok(0)
}

fn list(images: &[Image], json: bool) -> Result<()> {
    if json {
        let records: Vec<_> = images
            .iter()
            .map(|image| serde_json::json!({ "names": image.names(), "image": image.record() }))
            .collect();
        print(serde_json::to_string_pretty(&records)?)?;
        return Ok(());
    }
    let rows = images.iter().map(|image| {
        let names = image.names().join(", ");
        let short: String = image
            .digest()
            .to_string()
            .chars()
            .take("sha256:".len() + 12)
            .collect();
        vec![
            names,
            short,
            image.filesystem().to_string(),
            size(image.record().size),
        ]
    });
    print(table(&["NAME", "DIGEST", "FILESYSTEM", "SIZE"], rows))?;
    Ok(())
}
