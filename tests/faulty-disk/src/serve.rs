//! The FUSE server: the files of one folder, with the faults in between.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    TimeOrNow, WriteFlags,
};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::faults::{Faults, Request};

/// Nothing is remembered by the kernel: files grow behind its back.
const TTL: Duration = Duration::ZERO;

/// The file system.
#[derive(Debug)]
pub(crate) struct Served {
    folder: PathBuf,
    faults: Arc<Faults>,
    /// The names of the files that the kernel knows, by inode number.
    names: Mutex<BTreeMap<u64, PathBuf>>,
    open: Mutex<BTreeMap<u64, Arc<File>>>,
    last_handle: AtomicU64,
}

impl Served {
    pub(crate) fn new(folder: PathBuf, faults: Arc<Faults>) -> Self {
        Self { folder, faults, names: Mutex::default(), open: Mutex::default(), last_handle: AtomicU64::new(0) }
    }

    fn path(&self, ino: INodeNo) -> io::Result<PathBuf> {
        if ino == INodeNo::ROOT {
            return Ok(self.folder.clone());
        }
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(&ino.0).cloned().ok_or_else(|| nix::errno::Errno::ENOENT.into())
    }

    fn attr(&self, path: &Path) -> io::Result<FileAttr> {
        let found = fs::symlink_metadata(path)?;
        let is_root = path == self.folder;
        if !is_root {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.insert(found.ino(), path.to_owned());
        }
        Ok(FileAttr {
            ino: if is_root { INodeNo::ROOT } else { INodeNo(found.ino()) },
            size: found.len(),
            blocks: found.blocks(),
            atime: UNIX_EPOCH,
            mtime: found.modified().unwrap_or(UNIX_EPOCH),
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if found.is_dir() { FileType::Directory } else { FileType::RegularFile },
            perm: if found.is_dir() { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    /// Does what is asked of an open file, as far as the faults admit it, and answers. Whatever has to wait does so in
    /// a thread of its own.
    fn work<R: Send + 'static>(
        &self,
        handle: FileHandle,
        request: Request,
        work: impl FnOnce(&File) -> io::Result<R> + Send + 'static,
        answer: impl FnOnce(io::Result<R>) + Send + 'static,
    ) {
        let file = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned();
        let Some(file) = file else { return answer(Err(nix::errno::Errno::EBADF.into())) };
        let faults = Arc::clone(&self.faults);
        let delayed = faults.delays(request);
        let all = move || {
            let result = faults.admit(request).and_then(|()| work(&file));
            if result.is_ok() {
                faults.done(request);
            }
            answer(result);
        };
        if delayed {
            thread::spawn(all);
        } else {
            all();
        }
    }
}

/// Exactly what is there, of up to `length` bytes.
fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut have = 0;
    while have < length {
        match file.read_at(&mut bytes[have..], offset + have as u64)? {
            0 => break,
            more => have += more,
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

fn finish(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &fuser::Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(&self.folder.join(name)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &fuser::Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.path(ino).and_then(|path| self.attr(&path)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &fuser::Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.path(ino).and_then(|path| {
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            self.attr(&path)
        });
        match changed {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &fuser::Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.path(ino).and_then(|path| OpenOptions::new().read(true).write(true).open(path)) {
            Ok(file) => reply.opened(self.keep(file), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(&self, _: &fuser::Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let path = self.folder.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        match file.and_then(|file| Ok((self.attr(&path)?, file))) {
            Ok((attr, file)) => {
                reply.created(&TTL, &attr, Generation(0), self.keep(file), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &fuser::Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, fs::remove_file(self.folder.join(name)));
    }

    fn readdir(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return reply.error(Errno::EIO) };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        let rest = names.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (index, name) in rest {
            let Ok(attr) = self.attr(&self.folder.join(name)) else { continue };
            if reply.add(attr.ino, index as u64 + 1, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = size as usize;
        self.work(
            handle,
            Request::Read(offset, size.into()),
            move |file| read(file, offset, length),
            move |result| match result {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error.into()),
            },
        );
    }

    fn write(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bytes = data.to_vec();
        self.work(
            handle,
            Request::Write(offset, bytes.len() as u64),
            move |file| file.write_all_at(&bytes, offset).map(|()| bytes.len()),
            move |result| match result {
                Ok(written) => reply.written(u32::try_from(written).expect("the kernel asks for less than 4 GiB")),
                Err(error) => reply.error(error.into()),
            },
        );
    }

    fn flush(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // What close(2) asks for: nothing is held back here.
        reply.ok();
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        // The medium is as durable as the test: what counts is that the flush came.
        self.work(handle, Request::Flush, |_| Ok(()), move |result| finish(reply, result));
    }

    fn fallocate(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.work(
            handle,
            Request::Write(offset, length),
            move |file| {
                let (offset, length) = (i64::try_from(offset), i64::try_from(length));
                let (Ok(offset), Ok(length)) = (offset, length) else { return Err(io::ErrorKind::InvalidInput.into()) };
                Ok(fallocate(file, FallocateFlags::from_bits_retain(mode), offset, length)?)
            },
            move |result| finish(reply, result),
        );
    }

    fn release(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }
}
