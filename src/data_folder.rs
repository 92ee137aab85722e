//! The folder that holds what must not be lost.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::Error;

/// Makes the folder, for its owner only, if it is not there.
pub(crate) fn make(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::File { action: "make the data folder", path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    fs::canonicalize(path).map_err(failed)
}

/// Keeps other servers away from the folder for as long as it lives: two processes on one SQLite file would each believe to be alone.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    /// A process that is being started has a copy of the open file for a moment, which would hold the lock too.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes the folder's lock.
pub(crate) fn lock(folder: &Path) -> Result<Lock, Error> {
    let path = folder.join("lock");
    let failed = |source| Error::File { action: "lock", path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::DataFolderInUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_folder_is_for_its_owner_and_for_one_server() {
        let parent = tempfile::tempdir().unwrap();
        let folder = make(&parent.path().join("a/b")).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let held = lock(&folder).unwrap();
        assert!(matches!(lock(&folder), Err(Error::DataFolderInUse(_))));
        let copy = held.0.try_clone().unwrap();
        drop(held);
        lock(&folder).unwrap();
        drop(copy);
    }
}
